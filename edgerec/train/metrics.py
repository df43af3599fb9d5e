"""Compute the metrics of classifiers and autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data.split import Indices
from edgerec.errors import ModelError
from edgerec.runtime.autoencoder import Autoencoder
from edgerec.runtime.image_model import ImageModel
from edgerec.train.run import Run
from edgerec.utils.optional import require

Reals = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EvaluationReport:
    """The metrics of a model on the images of a split.

    Attributes:
        accuracy: top-1 accuracy, 0 to 1; for an autoencoder, the fraction of the images that are recognized as known.
        loss: mean cross-entropy in nats; for an autoencoder, the mean reconstruction error.
        per_class: precision, recall, f1 and support of each label.
        confusion: confusion matrix of counts, ``confusion[true][predicted]``.
        labels: labels in the order of the rows and columns of ``confusion``.
        images: number of images.
        split: ``train``, ``val``, ``test``, ``all`` or ``held-out``. ``held-out`` means the test images, together with
            images that were not in the data set when the model was trained.
        training_images: number of these images the model was trained on, or None if unknown. If this is greater than 0,
            expect a lower accuracy on new images.
        data: source of the images, such as a folder, or an empty string for the run's own data.
    """

    accuracy: float
    loss: float
    per_class: dict[str, dict[str, float]]
    confusion: list[list[int]]
    labels: tuple[str, ...]
    images: int
    split: str
    training_images: int | None = 0
    data: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return vars(self) | {"labels": list(self.labels)}

    @property
    def measured(self) -> str:
        """Description of the evaluated images, e.g. ``on 280 images (test; none of them was used for training)``."""
        if self.training_images is None:
            origin = "it is unknown whether the model was trained on them"
        elif self.training_images:
            origin = f"{self.training_images} of them were used for training"
        else:
            origin = "none of them was used for training"
        return f"on {self.images} images ({self.split}; {origin})"


def classifier_report(
    scores: npt.NDArray[np.float32], classes: npt.NDArray[np.int64], labels: tuple[str, ...], split: str
) -> EvaluationReport:
    """Compute a classifier's metrics.

    Args:
        scores: scores of the classifier, float32 ``(N, classes)``.
        classes: true class of each image, ``(N,)``.
        labels: label of each class.
        split: name of the split, for the report.

    Raises:
        ModelError: a score is NaN or infinite, which makes the prediction undefined.
    """
    require_finite(scores)
    metrics = require("sklearn.metrics")
    predicted, known = scores.argmax(axis=1), np.arange(len(labels))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        classes, predicted, labels=known, zero_division=0
    )
    true_scores = np.clip(scores[np.arange(len(classes)), classes].astype(np.float64), 1e-7, 1.0)
    return EvaluationReport(
        accuracy=float(np.mean(predicted == classes)),
        loss=float(-np.log(true_scores).mean()),
        per_class={
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        confusion=metrics.confusion_matrix(classes, predicted, labels=known).tolist(),
        labels=labels,
        images=len(classes),
        split=split,
    )


def require_finite(outputs: Reals) -> None:
    """Raise :class:`ModelError` if a model's outputs of shape ``(N, …)`` contain NaN or infinite values."""
    if invalid := int((~np.isfinite(outputs).all(axis=1)).sum()):
        raise ModelError(
            f"the model's scores are NaN or infinite for {invalid} of {len(outputs)} images: train or convert the "
            "model again"
        )


@dataclass(frozen=True)
class ClassifierMetrics:
    """Metrics for a classifier, computed from its float32 scores of shape ``(N, classes)``.

    Attributes:
        labels: label of each output, or an empty tuple for an autoencoder.
        top1_name: name of the value returned by :meth:`top1`, for messages.
        model: class that runs the model's .tflite variants.
    """

    labels: tuple[str, ...]
    top1_name = "top-1"
    model = ImageModel

    def top1(self, outputs: Reals, classes: Indices) -> float:
        """Return the top-1 accuracy, 0 to 1. For an autoencoder, return the fraction of images recognized as known."""
        return float(np.mean(outputs.argmax(axis=1) == classes))

    def agreement(self, outputs: Reals, reference: Reals) -> float:
        """Return the fraction of images for which the float model (``reference``) predicts the same class.

        For an autoencoder, return Spearman's rank correlation with the errors of the float model, -1 to 1.
        """
        return float(np.mean(outputs.argmax(axis=1) == reference.argmax(axis=1)))

    def error(self, outputs: Reals) -> float | None:
        """Return an autoencoder's mean reconstruction error, or None for a classifier."""
        return None

    def report(self, outputs: Reals, classes: Indices, labels: Sequence[str]) -> EvaluationReport:
        """Compute all metrics from the model's outputs for the test images."""
        return classifier_report(outputs, classes, tuple(labels), "test")


@dataclass(frozen=True)
class AutoencoderMetrics:
    """Metrics for an autoencoder, computed from its float32 reconstruction errors of shape ``(N, 1)``.

    The interface is the same as :class:`ClassifierMetrics`. An image is known if its reconstruction error does not
    exceed the float model's ``threshold``.
    """

    threshold: float
    labels: tuple[str, ...] = ()
    top1_name = "known images"
    model = Autoencoder

    def top1(self, outputs: Reals, classes: Indices) -> float:
        return float(np.mean(outputs[:, 0] <= self.threshold))

    def agreement(self, outputs: Reals, reference: Reals) -> float:
        ours, theirs = (require("scipy.stats").rankdata(errors[:, 0]) for errors in (outputs, reference))
        if not ours.std() * theirs.std():  # the correlation is undefined if all of a model's errors are equal
            return float(np.array_equal(ours, theirs))
        return float(np.corrcoef(ours, theirs)[0, 1])

    def error(self, outputs: Reals) -> float | None:
        return float(outputs.mean(dtype=np.float64))

    def report(self, outputs: Reals, classes: Indices, labels: Sequence[str]) -> EvaluationReport:
        require_finite(outputs)
        return EvaluationReport(
            accuracy=self.top1(outputs, classes),
            loss=float(outputs.mean(dtype=np.float64)),
            per_class={},
            confusion=[],
            labels=(),
            images=len(outputs),
            split="test",
        )


ModelMetrics = ClassifierMetrics | AutoencoderMetrics


def metrics_of(run: Run) -> ModelMetrics:
    """Return the metrics that apply to a run's classifier or autoencoder."""
    return AutoencoderMetrics(run.metrics["threshold"]) if run.reconstructs else ClassifierMetrics(run.labels)
