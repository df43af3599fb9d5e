"""How far two forms of a model agree on the same held-out pictures, and the gate that follows from it."""

from __future__ import annotations

import gzip
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.methods import METHODS
from edgerec.errors import GateError
from edgerec.train.metrics import ModelMetrics


@dataclass(frozen=True)
class Form:
    """One row of the parity table.

    Attributes:
        name: ``keras float32``, ``float32`` or the variant's name.
        top1: part of the held-out pictures that it gets right, 0 to 1; of an autoencoder, that it knows, by float
            Keras' threshold.
        agreement: part on which its best class is the float Keras model's, 0 to 1; of an autoencoder, the rank
            correlation of its errors with the float Keras model's, −1 to 1.
        size_bytes: of the .tflite file; 0 for Keras.
        gzip_bytes: the same, compressed.
        error: of an autoencoder, the mean reconstruction error.
    """

    name: str
    top1: float
    agreement: float
    size_bytes: int = 0
    gzip_bytes: int = 0
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; the error only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "error" or value is not None}


def form(
    name: str,
    outputs: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int64],
    measure: ModelMetrics,
    content: bytes = b"",
) -> Form:
    """A row from outputs ``(N, …)``, the float Keras model's, and the truth ``(N,)``."""
    return Form(
        name,
        measure.top1(outputs, classes),
        measure.agreement(outputs, reference),
        len(content),
        len(gzip.compress(content, mtime=0)) if content else 0,
        measure.error(outputs),
    )


def check_drop(variant: str, float_top1: float, top1: float, max_drop: float, of: str = "top-1") -> None:
    """The gate: raise :class:`GateError` when ``top1`` is more than ``max_drop`` points below ``float_top1``.

    ``of`` says what it is that is lost, as :class:`~edgerec.train.metrics.ModelMetrics` does.
    """
    drop = (float_top1 - top1) * 100
    if drop > max_drop + 1e-9:
        milder = ", ".join(next((method.milder for method in METHODS.values() if method.variant == variant), ()))
        raise GateError(
            f"{variant} loses {drop:.2f} points of {of} ({float_top1:.2%} to {top1:.2%}), "
            f"--max-drop allows {max_drop:g}: {f'try {milder}, or ' if milder else ''}allow more"
        )
