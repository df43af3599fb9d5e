"""A model's input and output as numbers: what a pixel becomes, and what an output unit means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import EdgerecError, unknown

_DTYPES = ("uint8", "int8", "int16", "float32")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a .tflite file.

    Attributes:
        dtype: ``uint8``, ``int8``, ``int16`` or ``float32``.
        shape: with the batch first.
        scale, zero_point: ``real = scale · (stored − zero_point)``; 0.0 and 0 for float32.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"tensor dtype is {self.dtype!r}; expected one of {', '.join(_DTYPES)}")
        if self.quantized and not self.scale > 0:
            raise ValueError(f"a {self.dtype} tensor needs a scale above 0, got {self.scale!r}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def quantized(self) -> bool:
        """Whether the stored numbers are integers that stand for real ones."""
        return self.dtype != "float32"

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TensorSpec:
        """The inverse of :meth:`to_dict`; raises TypeError or ValueError on anything else."""
        return cls(**fields)


@dataclass(frozen=True)
class Normalise:
    """``real = (pixel − mean) / std``, in pixel units, for all channels alike.

    ``unit`` is [0, 1], ``signed`` is [−1, 1), and ``pixels`` leaves 0…255 as they are, for models that scale them
    themselves. All have a scale and an integer zero point under which quantizing gives the pixel back, so that a
    quantized model takes the camera's bytes as they are.
    """

    mean: float
    std: float

    def apply(self, pixels: Any) -> Any:
        """The real numbers of float pixels: an array or a TensorFlow tensor, of any shape."""
        return (pixels - self.mean) / self.std

    @classmethod
    def named(cls, name: str) -> Normalise:
        """``unit``, ``signed`` or ``pixels``; raises KeyError for another."""
        return NORMALISATIONS[name]


NORMALISATIONS = {"unit": Normalise(0.0, 255.0), "signed": Normalise(128.0, 128.0), "pixels": Normalise(0.0, 1.0)}
NORMALISE_CHOICES = "unit (to [0, 1]), signed (to [-1, 1)), pixels (as they are), or MEAN,STD as 127.5,127.5"


def parse_normalise(text: str) -> Normalise:
    """What a person typed: ``unit``, ``signed``, ``pixels`` or ``MEAN,STD``; raises :class:`EdgerecError`."""
    mean, comma, std = text.partition(",")
    if not comma:
        if text not in NORMALISATIONS:
            raise EdgerecError(f"{unknown('normalisation', text, NORMALISATIONS)}, or MEAN,STD")
        return NORMALISATIONS[text]
    try:
        normalise = Normalise(float(mean), float(std))
    except ValueError:
        raise EdgerecError(f"normalisation {text!r} is not MEAN,STD: two numbers, as 127.5,127.5") from None
    if not (math.isfinite(normalise.mean) and 0 < normalise.std < math.inf):
        raise EdgerecError(f"normalisation {text!r} needs a finite mean and a std above 0")
    return normalise


def passing(spec: TensorSpec) -> Normalise:
    """The normalisation under which pixels pass through a uint8 or int8 input: ``quantize(normalise(p), spec)`` is p,
    or p − 128 for int8, whatever its scale and zero point."""
    lowest = -128 if spec.dtype == "int8" else 0
    return Normalise(float(spec.zero_point - lowest), 1.0 / spec.scale)


def quantize(real: npt.NDArray[np.floating[Any]], spec: TensorSpec) -> npt.NDArray[Any]:
    """Store real numbers as ``spec`` does: round half to even, saturate (TFLite's quantization spec)."""
    if not spec.quantized:
        return real.astype(np.float32)
    limits = np.iinfo(spec.dtype)
    stored = np.rint(np.asarray(real, np.float64) / spec.scale) + spec.zero_point
    return np.clip(stored, limits.min, limits.max).astype(spec.dtype)


def dequantize(stored: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[np.float32]:
    """The real numbers that stored ones stand for, float32."""
    if not spec.quantized:
        return stored.astype(np.float32)
    return ((stored.astype(np.float64) - spec.zero_point) * spec.scale).astype(np.float32)


def pixel_table(normalise: Normalise, spec: TensorSpec) -> npt.NDArray[Any] | None:
    """What each of the 256 pixel values becomes at the input, or None when it stays itself.

    For a quantized input made by edgerec this is None: pixels pass through.
    """
    pixels = np.arange(256)
    table = quantize(normalise.apply(pixels), spec)
    if spec.dtype == "uint8" and np.array_equal(table, pixels):
        return None
    return table


Reals = npt.NDArray[np.float32]


def _softmax(real: Reals) -> Reals:
    powers = np.exp(real.astype(np.float64) - real.max())  # at most 1: nothing overflows
    return (powers / powers.sum()).astype(np.float32)


def _binary(real: Reals) -> Reals:
    return np.concatenate([1 - real, real])


# What makes scores in [0, 1] of a model's real outputs, ``(outputs,)``, where the model does not do so itself.
# "binary" is one output, the second class's score, for two classes.
ACTIVATIONS: dict[str, Callable[[Reals], Reals]] = {"none": lambda real: real, "softmax": _softmax, "binary": _binary}
