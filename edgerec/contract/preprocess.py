"""Image preprocessing shared by training, calibration, evaluation, export and the camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_decoding import Levels
from edgerec.utils.optional import require

Image = npt.NDArray[np.uint8]
Fit = Literal["crop", "stretch", "pad"]
Interpolation = Literal["linear", "nearest"]

# Version 1 of the resizing algorithm halves both axes together, and version 2 halves each axis separately.
PREPROCESS_VERSION = 2
# For arrays of 128 KiB or more, glibc's malloc requests new memory pages from the kernel, which is slow.
_BLOCK_BYTES = 120 << 10
# Old manifests, recipes and packed data sets do not record the version of the resizing algorithm.
UNRECORDED_VERSION = 1


@dataclass(frozen=True)
class PreprocessSpec:
    """Settings for converting images to the model's input: color format, geometry and interpolation.

    Attributes:
        height: height of the model's input in pixels.
        width: width of the model's input in pixels.
        channels: 3 for RGB, 1 for grayscale (ITU-R BT.601 luma, as OpenCV computes it).
        fit: ``crop`` the center to the input's aspect ratio, ``stretch`` the image to it, or ``pad`` with black.
        interpolation: ``linear`` (halved with integer arithmetic, then bilinear with fixed-point arithmetic) or
            ``nearest``. Both produce the same bytes on every CPU.
        version: version of the resizing algorithm, 1 to ``PREPROCESS_VERSION``. Old versions remain supported,
            so that existing models get the same pixels as during training.
        black_level: sample value that maps to black in 16-bit images.
        white_level: sample value that maps to white in 16-bit images, e.g. 4095 for a 12-bit sensor.
    """

    height: int
    width: int
    channels: int = 3
    fit: Fit = "crop"
    interpolation: Interpolation = "linear"
    version: int = PREPROCESS_VERSION
    black_level: int = 0
    white_level: int = 65535

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
                raise ValueError(f"preprocess.{name} is {value!r}; expected 1 to 4096 pixels")
        if self.channels not in (1, 3):
            raise ValueError(f"preprocess.channels is {self.channels!r}; expected 1 (grayscale) or 3 (RGB)")
        if self.fit not in get_args(Fit):
            raise ValueError(f"preprocess.fit is {self.fit!r}; expected one of {', '.join(get_args(Fit))}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"preprocess.interpolation is {self.interpolation!r}; "
                f"expected one of {', '.join(get_args(Interpolation))}"
            )
        if isinstance(self.version, bool) or not isinstance(self.version, int) or self.version < 1:
            raise ValueError(f"preprocess.version is {self.version!r}; expected 1 to {PREPROCESS_VERSION}")
        if self.version > PREPROCESS_VERSION:
            raise ValueError(
                f"preprocess.version is {self.version}, but this version of edgerec supports only versions up to "
                f"{PREPROCESS_VERSION}; upgrade with pip install -U edgerec"
            )

        levels = (self.black_level, self.white_level)
        if not all(type(level) is int for level in levels) or not -32768 <= levels[0] < levels[1] <= 65535:
            raise ValueError(
                f"preprocess.black_level and white_level are {levels[0]!r} and {levels[1]!r}; "
                "expected two integers from -32768 to 65535, with black_level below white_level"
            )

    @property
    def levels(self) -> Levels:
        """Black and white levels of 16-bit images."""
        return Levels(self.black_level, self.white_level)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a preprocessed image, ``(height, width, channels)``."""
        return self.height, self.width, self.channels

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary, omitting default black and white levels."""
        fields = asdict(self)
        if self.levels == Levels():
            del fields["black_level"], fields["white_level"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PreprocessSpec:
        """Create a specification from a dictionary returned by :meth:`to_dict`.

        If the dictionary has no version, ``UNRECORDED_VERSION`` is used.

        Raises:
            TypeError, ValueError: a field is unknown, or a value is outside its range.
        """
        return cls(**{"version": UNRECORDED_VERSION, **fields})


def apply(image: Image, spec: PreprocessSpec) -> Image:
    """Convert an image to the size, aspect ratio and color format of the model's input.

    Args:
        image: uint8 ``(H, W, 3)`` RGB, ``(H, W, 1)`` or ``(H, W)`` grayscale, of any size. For a BGR image, pass the
            view ``bgr[:, :, ::-1]``. Its channels are reordered after resizing, because this is faster.
        spec: size, color and geometry of the model's input.

    Returns:
        uint8 ``(spec.height, spec.width, spec.channels)``, C-contiguous.

    Raises:
        ValueError: ``image`` has another dtype or shape.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"image must have dtype uint8, got {image.dtype}")
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"image must have shape (H, W, 3) for RGB or (H, W) for grayscale, got {image.shape}")
    (rows, columns), (height, width) = cropped_and_resized(image.shape[0], image.shape[1], spec)
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    image = image[top : top + rows, left : left + columns]
    is_bgr_view = image.strides[2] < 0
    image = _resize(image[:, :, ::-1] if is_bgr_view else image, height, width, spec)
    if image.shape[2] == 4:
        cv2 = require("cv2")
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if is_bgr_view else cv2.COLOR_BGRA2BGR)
    elif is_bgr_view:
        image = contiguous(image[:, :, ::-1])
    image = _channels(image, spec.channels)
    if (height, width) != (spec.height, spec.width):
        image = _pad_to_center(image, spec.height, spec.width)
    return np.ascontiguousarray(image)


def cropped_and_resized(height: int, width: int, spec: PreprocessSpec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the height and width of an image after :func:`apply` has cropped it, and after it has resized it.

    The second size differs from the model's input only if black borders are added (``fit="pad"``).
    """
    resized = spec.height, spec.width
    if spec.fit == "crop":
        cropped_height = max(1, min(height, width * spec.height // spec.width))
        return (cropped_height, max(1, min(width, height * spec.width // spec.height))), resized
    if spec.fit == "pad" and height * spec.width >= width * spec.height:
        resized = spec.height, max(1, width * spec.height // height)
    elif spec.fit == "pad":
        resized = max(1, height * spec.width // width), spec.width
    return (height, width), resized


def contiguous(image: Image) -> Image:
    """Return an ``(H, W, 3)`` image as a C-contiguous array."""
    if image.strides[2] < 0:  # OpenCV copies an RGB view of a BGR image faster than NumPy.
        cv2 = require("cv2")
        return cv2.cvtColor(image[:, :, ::-1], cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(image)


def encode_png(image: Image) -> bytes:
    """Encode a uint8 ``(H, W, 3)`` RGB or ``(H, W, 1)`` grayscale image as PNG, and return the bytes.

    Raises:
        ValueError: OpenCV cannot encode an image of this shape.
    """
    cv2 = require("cv2")
    ok, content = cv2.imencode(".png", image[:, :, ::-1])
    if not ok:
        raise ValueError(f"OpenCV cannot encode an image of shape {image.shape} as PNG")
    return bytes(content)


def _resize(image: Image, height: int, width: int, spec: PreprocessSpec) -> Image:
    """Resize an image. A fourth channel with arbitrary values may be appended to an RGB image."""
    if image.shape[:2] == (height, width):
        return image
    cv2 = require("cv2")
    if spec.interpolation == "nearest":
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    else:
        # Halve the image first, because bilinear interpolation skips pixels when shrinking an axis by more than half.
        # OpenCV's INTER_AREA gives the same pixels on all CPUs only when it halves both axes.
        while (factors := _halving(image, height, width, spec.version)) != (1, 1):
            rows, columns = (side // factor for side, factor in zip(image.shape[:2], factors, strict=True))
            whole = image[: rows * factors[0], : columns * factors[1]]
            if factors == (2, 2):
                image = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
            else:
                image = _halve_rows(whole) if factors[0] == 2 else _halve_columns(whole)
        if image.ndim == 3 and image.shape[2] == 3:
            # OpenCV interpolates four-channel images faster than three-channel images.
            image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return resized[:, :, np.newaxis] if resized.ndim == 2 else resized


def _halving(image: Image, height: int, width: int, version: int) -> tuple[int, int]:
    """Return the factors (1 or 2) by which to divide the height and width in the next resizing step."""
    halve_rows, halve_columns = image.shape[0] >= 2 * height, image.shape[1] >= 2 * width
    if version == 1:
        halve_rows = halve_columns = halve_rows and halve_columns
    return 1 + halve_rows, 1 + halve_columns


def _halve_rows(image: Image) -> Image:
    """Average pairs of rows. This is faster than OpenCV's ``INTER_AREA`` and returns the same pixels."""
    even, odd = image[::2], image[1::2]
    halved = np.empty(even.shape, np.uint8)
    step = max(1, _BLOCK_BYTES // even[0].nbytes)
    temporary = np.empty((2, min(step, len(even)), *even.shape[1:]), np.uint8)
    for top in range(0, len(even), step):
        rows = slice(top, top + step)
        _mean(even[rows], odd[rows], halved[rows], *temporary[:, : len(even[rows])])
    return halved


def _halve_columns(image: Image) -> Image:
    """Average pairs of columns. This is faster than OpenCV's ``INTER_AREA`` and returns the same pixels.

    A color image gets a fourth channel, so that each pixel can be processed as an int32 number.
    """
    if image.ndim == 2 or image.shape[2] == 1:
        even, odd = image[:, ::2], image[:, 1::2]
        halved, differences, halves = np.empty((3, *even.shape), np.uint8)
        _mean(even, odd, halved, differences, halves)
        return halved
    cv2 = require("cv2")
    rows, columns = image.shape[0], image.shape[1] // 2
    means = np.empty((rows, columns), np.int32)
    step = min(max(1, _BLOCK_BYTES // (4 * columns)), rows)
    bgra = np.empty((step, 2 * columns, 4), np.uint8)
    odd, differences = np.empty((2, step, columns), np.int32)
    for top in range(0, rows, step):
        block, even = image[top : top + step], means[top : top + step]
        if len(block) < step:  # the last block
            bgra, odd, differences = bgra[: len(block)], odd[: len(block)], differences[: len(block)]
        pixels = cv2.cvtColor(block, cv2.COLOR_BGR2BGRA, dst=bgra) if block.shape[2] == 3 else block
        pairs = pixels.reshape(len(block), -1).view(np.int32).reshape(len(block), columns, 2)
        left, right = cv2.split(pairs, [even, odd])
        _mean(left, right, even, differences, odd)
    return means.view(np.uint8).reshape(rows, columns, 4)


def _mean(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    means: npt.NDArray[Any],
    differences: npt.NDArray[Any],
    halves: npt.NDArray[Any],
) -> None:
    """Compute the mean of two uint8 or int32 arrays byte by byte, rounding half to even.

    ``differences`` and ``halves`` are temporary arrays. ``means`` and ``halves`` may be the arrays ``a`` or ``b``.
    """
    ones = 0x01010101 if a.dtype == np.int32 else 1
    np.bitwise_xor(a, b, out=differences)
    np.bitwise_or(a, b, out=means)
    np.right_shift(differences, 1, out=halves)
    halves &= ones * 127
    means -= halves  # the mean rounded up
    differences &= means
    differences &= ones
    means -= differences


def _channels(image: Image, channels: int) -> Image:
    if image.shape[2] == channels:
        return image
    cv2 = require("cv2")
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, np.newaxis]
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)


def _pad_to_center(image: Image, height: int, width: int) -> Image:
    padded = np.zeros((height, width, image.shape[2]), np.uint8)
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded
