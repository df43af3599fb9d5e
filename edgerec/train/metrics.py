"""Compute the metrics of a run's model: accuracy of a classifier, reconstruction errors of an autoencoder."""

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
    """Metrics for the outputs of a run's model or of a variant of this model.

    The outputs come from a :data:`~edgerec.train.evaluate.Scorer`: scores of a classifier, float32 ``(N, classes)``, or
    reconstruction errors of an autoencoder, float32 ``(N, 1)``.

    Attributes:
        labels: label of each output; empty for an autoencoder.
        top1_name: description of the value that :meth:`top1` returns, for messages.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def top1_name(self) -> str: ...

    def model(self, content: bytes, normalise: Normalise, **options: Any) -> ImageModel:
        """Return a .tflite variant of the model, as :func:`~edgerec.train.evaluate.tflite_scorer` expects it.

        Args:
            content: the .tflite file.
            normalise: normalization of the input.
            options: further arguments of :class:`~edgerec.runtime.model.ImageModel`.
        """

    def top1(self, outputs: Reals, classes: Indices) -> float:
        """Return the fraction of the images that are classified correctly, or recognized as known, 0 to 1."""

    def agreement(self, outputs: Reals, reference: Reals) -> float:
        """Return the agreement with the outputs of the float model (``reference``); 1 is the maximum."""

    def error(self, outputs: Reals) -> float | None:
        """Return the mean reconstruction error; None for a classifier."""

    def figures(self, outputs: Reals, classes: Indices, labels: Sequence[str]) -> Figures:
        """Return all metrics for the outputs on the test images."""


@dataclass(frozen=True)
class ClassifierMetrics:
    """Metrics of a classifier.

    The agreement is the fraction of the images for which both models predict the same class.
    """

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
    """Metrics of an autoencoder.

    ``top1`` is the fraction of known images, whose reconstruction error is not above the threshold of the float model.
    The agreement is Spearman's rank correlation with the errors of the float model, -1 to 1.
    """

    threshold: float
    labels: tuple[str, ...] = ()
    top1_name = "known images"

    def model(self, content: bytes, normalise: Normalise, **options: Any) -> ImageModel:
        return Autoencoder(content, normalise, **options)

    def top1(self, outputs: Reals, classes: Indices) -> float:
        return float(np.mean(outputs[:, 0] <= self.threshold))

    def agreement(self, outputs: Reals, reference: Reals) -> float:
        ours, theirs = (_ranks(errors[:, 0]) for errors in (outputs, reference))
        spread = float(ours.std() * theirs.std())
        if not spread:  # all errors of one model or of both models are equal
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
    """Return the metrics that suit the kind of a run's model."""
    return AutoencoderMetrics(run.metrics["threshold"]) if run.reconstructs else ClassifierMetrics(run.labels)


def _ranks(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the rank of each value, counted from 1; equal values share their mean rank."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[groups]
