"""Compare a compressed model with the float model, and check that the loss of accuracy is acceptable."""

from __future__ import annotations

import gzip
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compression_methods import METHODS
from edgerec.errors import GateError
from edgerec.train.metrics import ModelMetrics


@dataclass(frozen=True)
class ParityRow:
    """Accuracy, agreement and size of one model in a comparison table.

    Attributes:
        name: ``keras float32``, ``float32`` or the variant's name.
        top1: top-1 accuracy on the test images, 0 to 1. For an autoencoder, the fraction of the images whose
            reconstruction error is below the float Keras model's threshold.
        agreement: fraction of the images with the same prediction as the float Keras model, 0 to 1. For an autoencoder,
            the rank correlation of its errors with those of the float Keras model, −1 to 1.
        size_bytes: size of the .tflite file, or 0 for Keras.
        gzip_bytes: size of the .tflite file after compression with gzip, or 0 for Keras.
        error: mean reconstruction error of an autoencoder, or None for a classifier.
    """

    name: str
    top1: float
    agreement: float
    size_bytes: int = 0
    gzip_bytes: int = 0
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON-serializable dictionary, omitting ``error`` if it is None."""
        return {key: value for key, value in asdict(self).items() if key != "error" or value is not None}


def parity_row(
    name: str,
    outputs: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int64],
    measure: ModelMetrics,
    content: bytes = b"",
) -> ParityRow:
    """Measure a model's accuracy, its agreement with the float model, and its size.

    Args:
        name: name of the row.
        outputs: outputs of the model, float32 ``(N, …)``.
        reference: outputs of the float Keras model, float32 ``(N, …)``.
        classes: true class of each image, int64 ``(N,)``.
        measure: computes accuracy and agreement from outputs.
        content: the .tflite file, or empty bytes for Keras.
    """
    return ParityRow(
        name,
        measure.top1(outputs, classes),
        measure.agreement(outputs, reference),
        len(content),
        len(gzip.compress(content, mtime=0)) if content else 0,
        measure.error(outputs),
    )


def check_drop(variant: str, float_top1: float, top1: float, max_drop: float, metric: str = "top-1") -> None:
    """Raise :class:`GateError` if ``top1`` is more than ``max_drop`` percentage points below ``float_top1``.

    ``metric`` is the accuracy's name in the message; see :attr:`edgerec.train.metrics.ClassifierMetrics.top1_name`.
    """
    drop = (float_top1 - top1) * 100
    if drop > max_drop + 1e-9:
        milder = ", ".join(next((method.milder for method in METHODS.values() if method.variant == variant), ()))
        raise GateError(
            f"{variant} loses {drop:.2f} percentage points of {metric} ({float_top1:.2%} to {top1:.2%}), "
            f"but --max-drop allows {max_drop:g}: {f'try {milder}, or ' if milder else ''}increase --max-drop"
        )
