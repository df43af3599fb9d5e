"""What a run's model is judged by: a classifier by its answers, an autoencoder by its reconstruction errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import Normalise
from edgerec.runtime.anomaly import Autoencoder
from edgerec.runtime.model import ImageModel
from edgerec.train.evaluate import Figures, Indices, Reals, figures
from edgerec.train.run import Run


class ModelMetrics(Protocol):
    """How outputs of any form of one run's model become figures.

    Outputs are what a :data:`~edgerec.train.evaluate.Scorer` gives: ``(N, classes)`` scores or ``(N, 1)`` errors.

    Attributes:
        labels: one for each output that has one.
        top1_name: what ``top1`` counts, in words.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def top1_name(self) -> str: ...

    def model(self, content: bytes, normalise: Normalise, **options: Any) -> ImageModel:
        """A .tflite of it, for :func:`~edgerec.train.evaluate.tflite_scorer`."""

    def top1(self, outputs: Reals, classes: Indices) -> float:
        """The part of the pictures that it gets right, 0 to 1."""

    def agreement(self, outputs: Reals, reference: Reals) -> float:
        """How far it agrees with the float model, up to 1."""

    def error(self, outputs: Reals) -> float | None:
        """The mean reconstruction error, where it has one."""

    def figures(self, outputs: Reals, classes: Indices, labels: Sequence[str]) -> Figures:
        """All of its figures on the test pictures."""


@dataclass(frozen=True)
class ClassifierMetrics:
    """Of a classifier: top-1 is the part of right answers, agreement that of the same answers."""

    labels: tuple[str, ...]
    top1_name = "top-1"

    def model(self, content: bytes, normalise: Normalise, **options: Any) -> ImageModel:
        return ImageModel(content, normalise, **options)

    def top1(self, outputs: Reals, classes: Indices) -> float:
        return float(np.mean(outputs.argmax(axis=1) == classes))

    def agreement(self, outputs: Reals, reference: Reals) -> float:
        return float(np.mean(outputs.argmax(axis=1) == reference.argmax(axis=1)))

    def error(self, outputs: Reals) -> float | None:
        return None

    def figures(self, outputs: Reals, classes: Indices, labels: Sequence[str]) -> Figures:
        return figures(outputs, classes, tuple(labels), "test")


@dataclass(frozen=True)
class AutoencoderMetrics:
    """Of an autoencoder: top-1 is the part of the pictures that it knows, whose error is not above ``threshold``, the
    float model's; agreement is Spearman's rank correlation with the float model's errors."""

    threshold: float
    labels: tuple[str, ...] = ()
    top1_name = "known pictures"

    def model(self, content: bytes, normalise: Normalise, **options: Any) -> ImageModel:
        return Autoencoder(content, normalise, **options)

    def top1(self, outputs: Reals, classes: Indices) -> float:
        return float(np.mean(outputs[:, 0] <= self.threshold))

    def agreement(self, outputs: Reals, reference: Reals) -> float:
        ours, theirs = (_ranks(errors[:, 0]) for errors in (outputs, reference))
        spread = float(ours.std() * theirs.std())
        if not spread:  # all errors alike, on one side or both
            return float(np.array_equal(ours, theirs))
        return float(np.mean((ours - ours.mean()) * (theirs - theirs.mean())) / spread)

    def error(self, outputs: Reals) -> float | None:
        return float(outputs.mean(dtype=np.float64))

    def figures(self, outputs: Reals, classes: Indices, labels: Sequence[str]) -> Figures:
        return Figures(
            accuracy=self.top1(outputs, classes),
            loss=float(outputs.mean(dtype=np.float64)),
            per_class={},
            confusion=[],
            labels=(),
            images=len(outputs),
            split="test",
        )


def metrics_of(run: Run) -> ModelMetrics:
    """What judges the forms of a run's model."""
    return AutoencoderMetrics(run.metrics["threshold"]) if run.reconstructs else ClassifierMetrics(run.labels)


def _ranks(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The place of each value in their order; equal ones share their mean place."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
