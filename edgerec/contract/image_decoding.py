"""Decode image files to the same pixels on every machine and with every OpenCV version.

OpenCV decodes the pixels. :mod:`edgerec.contract.image_headers` reads the orientation and the bit depth.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.format_detection import describe
from edgerec.contract.image_headers import (
    TIFF_MARKS,
    bits_per_sample,
    image_size,
    orientation_to_apply,
    stated_white,
    turned,
)
from edgerec.utils.atomic import read_at_most
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 30
# Larger images are rejected, because decoding them could take more than 1.2 GB of memory.
MAX_PIXELS = 200_000_000
# Images with more pixels are decoded by one thread at a time to limit memory use.
LARGE_PIXELS = 1 << 24
_LARGE_IMAGE = threading.Lock()
_SAMPLES_PER_BLOCK = 1 << 24
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))


@dataclass(frozen=True)
class Levels:
    """Black and white levels of 16-bit images: the sample values that map to 0 and 255."""

    black: int = 0
    white: int = 65535

    def apply(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Convert integer samples of any shape to uint8. Samples outside the black and white levels are clipped.

        If the levels span the range of an n-bit integer, the conversion is a bit shift, e.g. ``v >> 8`` for 0 to 65535.
        """
        converted = np.empty(samples.shape, np.uint8)
        flat = converted.reshape(-1)
        for start, block in _blocks(samples):
            if samples.dtype == np.uint16:
                flat[start : start + _SAMPLES_PER_BLOCK] = _table(self.black, self.white)[block]
            else:
                flat[start : start + _SAMPLES_PER_BLOCK] = _scaled(block, self.black, self.white)
        return converted


def _blocks(samples: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    flat = samples.reshape(-1)
    for start in range(0, len(flat), _SAMPLES_PER_BLOCK):
        yield start, flat[start : start + _SAMPLES_PER_BLOCK]


@lru_cache(maxsize=8)
def _table(black: int, white: int) -> npt.NDArray[np.uint8]:
    return _scaled(np.arange(65536), black, white)


def _scaled(samples: npt.NDArray[Any], black: int, white: int) -> npt.NDArray[np.uint8]:
    kind = np.float64 if samples.dtype.kind == "f" else np.int64
    scaled = (samples.astype(kind) - black) * 256 // (white - black + 1)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def decode(content: bytes, levels: Levels | None = None, *, reduction: int = 1) -> npt.NDArray[np.uint8] | None:
    """Decode an image file to uint8 ``(H, W, 3)`` RGB. Return None if the image cannot be read.

    Images with more than :data:`MAX_PIXELS` pixels are rejected, because even a small file can contain such an image.
    The orientation in the header is applied, grayscale is converted to RGB, and an alpha channel is dropped.

    Args:
        content: the file's bytes.
        levels: black and white levels of a file with more than 8 bits per sample. If None, the bit depth from the
            file header is used, or the smallest one that can represent all samples if the header does not contain it.
        reduction: 2, 4 or 8 decodes a JPEG file at 1/2, 1/4 or 1/8 of its size, rounded up. Must be 1 for other
            formats; see :mod:`edgerec.contract.reduced_decoding`.
    """
    if is_heic(content):
        return _decode_heic(content)
    image = _decoded(content, deep=bits_per_sample(content) > 8, reduction=reduction)
    if image is None:
        return None
    if image.dtype != np.uint8:
        if levels is None:
            levels = SampleRange.of(content, image).levels
        image = levels.apply(image)
    cv2 = require("cv2")
    # OpenCV reorders the channels several times faster than NumPy.
    upright = turned(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), orientation_to_apply(content))
    return np.ascontiguousarray(upright)


def read_image_file(path: Path) -> bytes:
    """Return the content of a file. Raise :class:`OSError` if the file is larger than :data:`MAX_FILE_BYTES`."""
    return read_at_most(path, MAX_FILE_BYTES)


def memory_for(content: bytes) -> AbstractContextManager[object]:
    """Return a context manager that limits the memory use of threads that decode images in parallel.

    If the image has more than :data:`LARGE_PIXELS` pixels, only one thread at a time can enter the context.
    """
    width, height = image_size(content)
    return _LARGE_IMAGE if width * height > LARGE_PIXELS else nullcontext()


def _is_too_large(content: bytes) -> bool:
    width, height = image_size(content)
    return width * height > MAX_PIXELS


def decode_samples(content: bytes) -> npt.NDArray[Any] | None:
    """Decode an image with more than 8 bits per sample to BGR ``(H, W, 3)``. Return None if it cannot be decoded."""
    image = _decoded(content, deep=True)
    return None if image is None or image.dtype == np.uint8 else image


def color_flag(reduction: int) -> int:
    """Return OpenCV's flag that decodes a color image at 1/1, 1/2, 1/4 or 1/8 of its size."""
    cv2 = require("cv2")
    return int(cv2.IMREAD_COLOR if reduction == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduction}"))


def _decoded(content: bytes, *, deep: bool, reduction: int = 1) -> npt.NDArray[Any] | None:
    cv2 = require("cv2")
    if not content or _is_too_large(content):
        return None
    flags = color_flag(reduction) | cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_ANYDEPTH if deep else 0)
    try:
        image: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    return image if image is not None and image.dtype in (np.uint8, np.uint16, np.int16) else None


@dataclass(frozen=True)
class SampleRange:
    """Histogram of sample values in one or more images with more than 8 bits per sample.

    Attributes:
        counts: ``(98304,)``, number of samples with each value from -32768 to 65535.
        stated: white level in the file headers, or 0 if the headers do not contain it.
    """

    counts: npt.NDArray[np.int64]
    stated: int = 0

    @classmethod
    def of(cls, content: bytes, samples: npt.NDArray[Any]) -> SampleRange:
        """Return the histogram of an image file's sample values."""
        return cls.of_samples(samples, stated_white(content))

    @classmethod
    def of_samples(cls, samples: npt.NDArray[Any], stated: int = 0) -> SampleRange:
        """Return the histogram of integer samples between -32768 and 65535."""
        counts = np.zeros(_BINS, np.int64)
        for _, block in _blocks(samples):
            counts += np.bincount(block.astype(np.int32) + _ZERO_BIN, minlength=_BINS)
        return cls(counts, stated)

    def __add__(self, other: SampleRange) -> SampleRange:
        return SampleRange(self.counts + other.counts, max(self.stated, other.stated))

    @property
    def levels(self) -> Levels:
        """Black and white levels of the images, derived from their bit depth or their samples.

        If the file headers do not contain the bit depth, the smallest bit depth that can represent all samples is used.
        If the samples occupy only a small fraction of its range, as in thermal images, the levels are the smallest and
        the largest sample. Dead pixels (at most 0.01 % of the samples, far from all others) are ignored.
        """
        values = np.flatnonzero(self.counts)
        if not len(values):
            return Levels()
        cumulative = np.cumsum(self.counts) / self.counts.sum()
        low, high = int(values[0]) - _ZERO_BIN, int(values[-1]) - _ZERO_BIN
        if self.stated and low >= 0 and high <= self.stated:
            return Levels(0, self.stated)
        if self.stated:
            return Levels()  # The encoder has already scaled the samples to 16 bits.
        usual_low, usual_high = (
            int(np.searchsorted(cumulative, fraction)) - _ZERO_BIN for fraction in (0.0001, 0.9999)
        )
        span = usual_high - usual_low
        low, high = (usual_low if usual_low - low > span else low), (usual_high if high - usual_high > span else high)
        white = max((1 << max(high, 1).bit_length()) - 1, 255)
        if low >= 0 and high - low > white // 4:
            return Levels(0, white)
        return Levels(low, max(high, low + 255))


_ZERO_BIN, _BINS = 32768, 32768 + 65536


def is_heic(content: bytes) -> bool:
    """Return whether the content is a HEIC or HEIF image, such as an iPhone photo."""
    if content[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[8:12], *(content[i : i + 4] for i in range(16, size - 3, 4))}
    return bool(brands & _HEIC_BRANDS) and not brands & {b"avif", b"avis"}


def _decode_heic(content: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode a HEIC file with pillow-heif, which also applies the orientation."""
    try:
        heif = require("pillow_heif")
    except ImportError:
        return None
    try:
        image = heif.open_heif(content, convert_hdr_to_8bit=True)
        if image.size[0] * image.size[1] > MAX_PIXELS:
            return None
        return np.ascontiguousarray(np.asarray(image.to_pillow().convert("RGB")))
    except (ValueError, RuntimeError, OSError, SyntaxError):
        return None


def why_unreadable(content: bytes) -> str:
    """Explain why :func:`decode` cannot read an image file, and how to fix the problem."""
    if _is_too_large(content):
        width, height = image_size(content)
        return (
            f"the image has {width}×{height} pixels, but edgerec decodes at most {MAX_PIXELS:,} pixels: resize the "
            "image"
        )
    if is_heic(content):
        try:
            require("pillow_heif")
        except ImportError:
            return (
                'it is a HEIC file, and pillow-heif is not installed: pip install "edgerec[heic]", '
                "or convert the file to JPEG"
            )
        return "it is a damaged HEIC file"
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis"):
        return "it is a damaged AVIF file, or this OpenCV version does not support AVIF: convert it to JPEG or PNG"
    if content[:4] in TIFF_MARKS and bits_per_sample(content) > 16:
        return "it is a TIFF file with 32-bit samples: save it with 16-bit or 8-bit samples"
    if content[:2] == b"\xff\x0a" or content[4:8] == b"JXL ":
        return "it is a JPEG XL file, which OpenCV does not support: convert it to JPEG or PNG"
    if content[128:132] == b"DICM":
        return "it is a DICOM file: export its images as 16-bit PNG"
    kind = describe(content)
    other = kind and not kind.endswith(("image", "(WebP, AVI or WAV)"))
    return f"it {kind}" if other else "OpenCV cannot decode it; expected JPEG, PNG, BMP, TIFF or WebP"
