"""How far two forms of a model agree on the same held-out pictures, and the gate that follows from it."""

from __future__ import annotations

import gzip
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import GateError


@dataclass(frozen=True)
class Form:
    """One row of the parity table.

    Attributes:
        name: ``keras float32``, ``float32`` or the variant's name.
        top1: part of the held-out pictures that it gets right, 0 to 1.
        agreement: part on which its best class is the float Keras model's, 0 to 1.
        size_bytes: of the .tflite file; 0 for Keras.
        gzip_bytes: the same, compressed.
    """

    name: str
    top1: float
    agreement: float
    size_bytes: int = 0
    gzip_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def form(
    name: str,
    scores: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int64],
    content: bytes = b"",
) -> Form:
    """A row from scores ``(N, classes)``, the float Keras model's scores, and the truth ``(N,)``."""
    predicted = scores.argmax(axis=1)
    return Form(
        name,
        float(np.mean(predicted == classes)),
        float(np.mean(predicted == reference.argmax(axis=1))),
        len(content),
        len(gzip.compress(content, mtime=0)) if content else 0,
    )


def check_drop(variant: str, float_top1: float, top1: float, max_drop: float) -> None:
    """The gate: raise :class:`GateError` when ``top1`` is more than ``max_drop`` points below ``float_top1``."""
    drop = (float_top1 - top1) * 100
    if drop > max_drop + 1e-9:
        raise GateError(
            f"{variant} loses {drop:.2f} points of top-1 ({float_top1:.2%} to {top1:.2%}), "
            f"--max-drop allows {max_drop:g}: try --method qat, more --epochs or less --sparsity, or allow more"
        )
