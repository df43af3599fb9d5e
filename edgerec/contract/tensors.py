"""Normalize and quantize a model's input, and convert its output to scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import EdgerecError, ModelError, unknown

MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 28
_DTYPES = ("uint8", "int8", "int16", "float32")


@dataclass(frozen=True)
class TensorSpec:
    """Data type, shape and quantization of a tensor in a .tflite file.

    Attributes:
        dtype: ``uint8``, ``int8``, ``int16`` or ``float32``.
        shape: shape including the batch dimension, which is the first one.
        scale, zero_point: quantization parameters, ``real = scale · (stored − zero_point)``. Both are 0 for float32.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"tensor dtype is {self.dtype!r}; expected one of {', '.join(_DTYPES)}")
        if self.quantized and not self.scale > 0:
            raise ValueError(f"scale must be positive for {self.dtype} tensors, got {self.scale!r}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def quantized(self) -> bool:
        """Whether the tensor is quantized, i.e. stores integers that represent real values."""
        return self.dtype != "float32"

    @property
    def size(self) -> int:
        """Number of values in the tensor."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TensorSpec:
        """Create a specification from a dictionary returned by :meth:`to_dict`.

        Raises:
            TypeError, ValueError: a field is unknown, or a value is outside its range.
        """
        shape = fields.get("shape")
        if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
            raise ValueError(f"shape must be a list of 1 to {MAX_DIMENSIONS} integers, got {shape!r}")
        if not all(type(n) is int and 1 <= n <= MAX_SIZE for n in shape) or math.prod(shape) > MAX_SIZE:
            raise ValueError(f"shape must contain positive integers with a product up to {MAX_SIZE:,}, got {shape}")
        return cls(**fields)


@dataclass(frozen=True)
class Normalize:
    """Normalization with the same mean and standard deviation for all channels: ``real = (pixel − mean) / std``.

    The named normalizations are ``unit`` (range [0, 1]), ``signed`` (range [−1, 1)) and ``pixels`` (no change, for
    models that contain a normalization layer). Each is the inverse of a quantization with an
    integer zero point, so the input of a quantized model is the unchanged image.

    Attributes:
        mean, std: mean and standard deviation in pixel units.
    """

    mean: float
    std: float

    def apply(self, pixels: Any) -> Any:
        """Normalize ``pixels``, a float NumPy array or TensorFlow tensor of any shape."""
        return (pixels - self.mean) / self.std

    def to_text(self) -> str:
        """Format the normalization as a string that :func:`parse_normalize` accepts."""
        return f"{self.mean:.9g},{self.std:.9g}"

    @classmethod
    def named(cls, name: str) -> Normalize:
        """Return the normalization ``unit``, ``signed`` or ``pixels``. Raise :class:`KeyError` for other names."""
        return NORMALIZATIONS[name]


NORMALIZATIONS = {"unit": Normalize(0.0, 255.0), "signed": Normalize(128.0, 128.0), "pixels": Normalize(0.0, 1.0)}


@dataclass(frozen=True)
class ChannelNormalize:
    """Per-channel normalization, optionally in BGR order: ``real[c] = (image[c] - mean[c]) / std[c]``.

    A single input scale and zero point cannot express per-channel normalization. Export therefore adds it to the graph
    as a 1x1 convolution, so that the input of the exported model is the unchanged RGB image.

    Attributes:
        mean, std: one value per channel in pixel units, in the channel order of the original model.
        bgr: whether the channel order of the original model is BGR instead of RGB.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def apply(self, pixels: Any) -> Any:
        """Normalize float RGB pixels of shape ``(…, 3)``. The result has the original model's channel order."""
        kernel, bias = self.convolution()
        return pixels @ kernel + bias

    def convolution(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the kernel and bias of the equivalent 1x1 convolution.

        Returns:
            Kernel of shape ``(RGB channels, outputs)`` and bias of shape ``(outputs,)``, both float32.
        """
        scales = np.diag(1 / np.array(self.std, np.float64))
        kernel = scales[::-1] if self.bgr else scales
        return kernel.astype(np.float32), (-np.array(self.mean) / np.array(self.std)).astype(np.float32)

    def to_text(self) -> str:
        """Format the normalization as a string that :func:`parse_normalize` accepts."""
        mean, std = (",".join(f"{value:.9g}" for value in values) for values in (self.mean, self.std))
        return f"{'bgr:' if self.bgr else ''}{mean}/{std}"


AnyNormalize = Normalize | ChannelNormalize


def input_convolution(
    normalize: AnyNormalize, channels: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the kernel and bias of the 1x1 convolution that normalizes an image with ``channels`` channels.

    Raises:
        ModelError: the normalization is per channel, but the image is grayscale.
    """
    if isinstance(normalize, Normalize):
        factor = np.eye(channels, dtype=np.float32) / np.float32(normalize.std)
        return factor, np.full(channels, -normalize.mean / normalize.std, np.float32)
    if channels != 3:
        raise ModelError(
            f"normalization {normalize.to_text()} requires RGB images, but the model's input has {channels} channel: "
            "use a normalization of the form MEAN,STD"
        )
    return normalize.convolution()


# Normalizations of the three modes of Keras' imagenet_utils.preprocess_input. Most torchvision models use "torch".
PREPROCESS_INPUT: dict[str, AnyNormalize] = {
    "tf": Normalize(127.5, 127.5),
    "torch": ChannelNormalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": ChannelNormalize((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), bgr=True),
}
NORMALIZE_CHOICES = (
    "unit (to [0, 1]), signed (to [-1, 1)), pixels (unchanged), tf, torch or caffe (as Keras' preprocess_input), "
    "MEAN,STD or R,G,B/R,G,B in pixel units, with the prefix bgr: if the model's channel order is BGR"
)


def parse_normalize(text: str) -> AnyNormalize:
    """Parse a normalization that is specified by its name or its values.

    Valid values are the names in ``NORMALIZATIONS`` and ``PREPROCESS_INPUT``, ``MEAN,STD``, and ``M1,M2,M3/S1,S2,S3``
    with one mean and one standard deviation per channel, or a single one for all channels. The values are in pixel
    units, in the channel order of the model. The prefix ``bgr:`` states that this order is blue, green, red.

    Raises:
        EdgerecError: the text has another form, or a value is out of range.
    """
    order, colon, values = text.strip().rpartition(":")
    if colon and order not in ("rgb", "bgr"):
        raise EdgerecError(f"normalization {text!r} has the channel order {order!r}; expected rgb or bgr")
    names = NORMALIZATIONS | PREPROCESS_INPUT
    if values in names:
        named = names[values]
        if order != "bgr" or (isinstance(named, ChannelNormalize) and named.bgr):
            return named
        mean, std = ((v,) * 3 if isinstance(v, float) else v for v in (named.mean, named.std))
        return ChannelNormalize(mean[::-1], std[::-1], bgr=True)  # type: ignore[arg-type]
    return _from_values(text, values, order == "bgr")


def _from_values(text: str, values: str, bgr: bool) -> AnyNormalize:
    if "," not in values and "/" not in values:
        choices = NORMALIZATIONS | PREPROCESS_INPUT
        raise EdgerecError(
            f"{unknown('normalization', values, choices)}; use one of these names, MEAN,STD or R,G,B/R,G,B"
        )
    first, _, last = values.partition("/" if "/" in values else ",")
    try:
        mean, std = ([float(value) for value in part.split(",")] for part in (first, last))
    except ValueError:
        mean, std = [], []
    if len(mean) not in (1, 3) or len(std) not in (1, 3) or ("/" not in values and len(std) > 1):
        raise EdgerecError(
            f"cannot parse normalization {text!r}; expected MEAN,STD (e.g. 127.5,127.5) or one mean and one standard "
            "deviation per channel (e.g. 123.675,116.28,103.53/58.395,57.12,57.375)"
        )
    if not all(math.isfinite(value) for value in mean) or not all(0 < value < math.inf for value in std):
        raise EdgerecError(f"normalization {text!r} must have finite means and positive, finite standard deviations")
    if max(std) < 1 and max(map(abs, mean)) <= 1:
        shown = "/".join(",".join(f"{255 * value:g}" for value in part) for part in (mean, std))
        raise EdgerecError(
            f"normalization {text!r} is for pixels in [0, 1], but pixels are in [0, 255]: "
            f"use {'bgr:' if bgr else ''}{shown}"
        )
    if not bgr and len(set(mean)) == len(set(std)) == 1:
        return Normalize(mean[0], std[0])
    (m1, m2, m3), (s1, s2, s3) = (part * (3 // len(part)) for part in (mean, std))
    return ChannelNormalize((m1, m2, m3), (s1, s2, s3), bgr)


def identity_normalize(spec: TensorSpec) -> Normalize:
    """Return the normalization that is the inverse of a uint8 or int8 input's quantization.

    For every pixel value p, ``quantize(normalize(p), spec)`` is p for uint8 and p − 128 for int8.
    """
    lowest = -128 if spec.dtype == "int8" else 0
    return Normalize(float(spec.zero_point - lowest), 1.0 / spec.scale)


def quantize(real: npt.NDArray[np.floating[Any]], spec: TensorSpec) -> npt.NDArray[Any]:
    """Quantize real values to ``spec.dtype``, rounding half to even and clipping to the dtype's range.

    The formula is from the TFLite 8-bit quantization specification. For a float32 spec, the values are not quantized.
    """
    if not spec.quantized:
        return real.astype(np.float32)
    limits = np.iinfo(spec.dtype)
    stored = np.rint(np.asarray(real, np.float64) / spec.scale) + spec.zero_point
    return np.clip(stored, limits.min, limits.max).astype(spec.dtype)


def dequantize(stored: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[np.float32]:
    """Dequantize tensor values to float32."""
    if not spec.quantized:
        return stored.astype(np.float32)
    return ((stored.astype(np.float64) - spec.zero_point) * spec.scale).astype(np.float32)


def pixel_table(normalize: Normalize, spec: TensorSpec) -> npt.NDArray[Any] | None:
    """Return a lookup table of shape ``(256,)`` that converts pixel values to input values.

    Return None if each pixel value maps to itself, as in quantized models that edgerec has converted.
    """
    pixels = np.arange(256)
    table = quantize(normalize.apply(pixels), spec)
    if spec.dtype == "uint8" and np.array_equal(table, pixels):
        return None
    return table


Reals = npt.NDArray[np.float32]


def _softmax(real: Reals) -> Reals:
    powers = np.exp(real.astype(np.float64) - real.max())  # Subtracting the maximum prevents overflow in exp.
    return (powers / powers.sum()).astype(np.float32)


def _sigmoid(real: Reals) -> Reals:
    # tanh does not overflow for large negative values, unlike exp(-x).
    return (0.5 + 0.5 * np.tanh(real.astype(np.float64) / 2)).astype(np.float32)


def _binary(real: Reals) -> Reals:
    return np.concatenate([1 - real, real])


# Functions that convert a model's dequantized outputs, a float32 array of shape (outputs,), to scores in [0, 1].
# A binary classifier's only output is the score ("binary") or the logit ("binary_sigmoid") of the second class.
ACTIVATIONS: dict[str, Callable[[Reals], Reals]] = {
    "none": lambda real: real,
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "binary": _binary,
    "binary_sigmoid": lambda real: _binary(_sigmoid(real)),
}
BINARY = ("binary", "binary_sigmoid")
