"""Decode image files so that the same file gives the same pixels with every OpenCV version and on every machine.

OpenCV decodes the pixels. This module reads the orientation and the bit depth from the file headers itself, because
OpenCV versions differ in these respects or do not support them.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.content import describe
from edgerec.optional import require

log = logging.getLogger(__name__)

# Maximum number of bytes that are searched for header fields. Orientation and bit depth are stored before the pixels.
HEADER_BYTES = 1 << 20
ORIENTATION = 0x112
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Levels:
    """Sample values of 16-bit images that are converted to black (0) and white (255)."""

    black: int = 0
    white: int = 65535

    def apply(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Convert integer samples of any shape to uint8. Values outside the levels are clipped to 0 or 255.

        If the levels span the range of an n-bit integer, the conversion is a bit shift: ``v >> 8`` for 0 to 65535,
        ``v >> 4`` for 0 to 4095.
        """
        if samples.dtype == np.uint16:
            converted: npt.NDArray[np.uint8] = _table(self.black, self.white)[samples]
            return converted
        return _scaled(samples, self.black, self.white)


@lru_cache(maxsize=8)
def _table(black: int, white: int) -> npt.NDArray[np.uint8]:
    return _scaled(np.arange(65536), black, white)


def _scaled(samples: npt.NDArray[Any], black: int, white: int) -> npt.NDArray[np.uint8]:
    kind = np.float64 if samples.dtype.kind == "f" else np.int64
    scaled = (samples.astype(kind) - black) * 256 // (white - black + 1)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def decode(content: bytes, levels: Levels | None = None) -> npt.NDArray[np.uint8] | None:
    """Decode an image file's bytes to uint8 ``(H, W, 3)`` RGB, or return None if they are not a readable image.

    The orientation in the header is applied, grayscale is converted to RGB, and an alpha channel is dropped.

    Args:
        content: the bytes of the whole file.
        levels: the values that become black and white in a file with more than 8 bits per sample. None uses the bit
            depth in the header, or if the header states none, the smallest bit depth that holds the largest sample.
    """
    if is_heic(content):
        return _decode_heic(content)
    image = _decoded(content, deep=bits_per_sample(content) > 8)
    if image is None:
        return None
    if image.dtype != np.uint8:
        if levels is None:
            levels = SampleRange.of(content, image).levels
        image = levels.apply(image)
    upright = _turned(image[:, :, ::-1], _orientation_to_apply(content))
    return np.ascontiguousarray(upright)


def decode_samples(content: bytes) -> npt.NDArray[Any] | None:
    """Decode a file with more than 8 bits per sample without scaling, ``(H, W, 3)`` BGR; None for unreadable files."""
    image = _decoded(content, deep=True)
    return None if image is None or image.dtype == np.uint8 else image


def _decoded(content: bytes, *, deep: bool) -> npt.NDArray[Any] | None:
    cv2 = require("cv2")
    if not content:
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_ANYDEPTH if deep else 0)
    try:
        image: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    return image if image is not None and image.dtype in (np.uint8, np.uint16, np.int16) else None


@dataclass(frozen=True)
class SampleRange:
    """Histogram of one or more images with more than 8 bits per sample.

    Attributes:
        counts: ``(98304,)``, number of samples of each value from -32768 to 65535.
        stated: white level in the headers of the files; 0 if the headers do not state it.
    """

    counts: npt.NDArray[np.int64]
    stated: int = 0

    @classmethod
    def of(cls, content: bytes, samples: npt.NDArray[Any]) -> SampleRange:
        """Return the histogram of one file."""
        return cls.of_samples(samples, stated_white(content))

    @classmethod
    def of_samples(cls, samples: npt.NDArray[Any], stated: int = 0) -> SampleRange:
        """Return the histogram of integer samples between -32768 and 65535."""
        return cls(np.bincount(samples.reshape(-1).astype(np.int32) + _OFFSET, minlength=_VALUES), stated)

    def __add__(self, other: SampleRange) -> SampleRange:
        return SampleRange(self.counts + other.counts, max(self.stated, other.stated))

    @property
    def levels(self) -> Levels:
        """Return suitable levels: the stated bit depth, or the smallest bit depth that holds all values.

        If the values occupy only a small fraction of this range, as in images of thermal cameras, the levels are the
        smallest and the largest value. Dead pixels (at most 0.01 % of the samples, far from all others) are ignored.
        """
        values = np.flatnonzero(self.counts)
        if not len(values):
            return Levels()
        shares = np.cumsum(self.counts) / self.counts.sum()
        low, high = int(values[0]) - _OFFSET, int(values[-1]) - _OFFSET
        if self.stated and low >= 0 and high <= self.stated:
            return Levels(0, self.stated)
        if self.stated:
            return Levels()  # the encoder has scaled the values to 16 bits
        usual_low, usual_high = (int(np.searchsorted(shares, part)) - _OFFSET for part in (0.0001, 0.9999))
        span = usual_high - usual_low
        low, high = (usual_low if usual_low - low > span else low), (usual_high if high - usual_high > span else high)
        white = max((1 << max(high, 1).bit_length()) - 1, 255)
        if low >= 0 and high - low > white // 4:
            return Levels(0, white)
        return Levels(low, max(high, low + 255))


_OFFSET, _VALUES = 32768, 32768 + 65536


# File headers


def bits_per_sample(content: bytes) -> int:
    """Return the bits per sample of a PNG, TIFF, JPEG 2000 or PNM file; 8 for all other formats."""
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 24:
        return content[24]
    if content[:4] in _TIFF_MARKS:
        return max(_tiff_tags(content).get(258, [8]))
    if bits := _jpeg_2000_bits(content):
        return bits
    return 16 if _pnm_maximum(content) > 255 else 8


def stated_white(content: bytes) -> int:
    """Return the largest possible sample value according to the header of a file with more than 8 bits per sample.

    The value is read from the significant bits (sBIT) of PNG, the maximum of PNM, the precision of JPEG 2000, and the
    bits per sample or MaxSampleValue of TIFF. Return 0 if the header does not state the value, or states 65535, which
    most programs write regardless of the actual values.
    """
    if maximum := _pnm_maximum(content):
        return maximum if maximum < 65535 else 0
    if bits := _jpeg_2000_bits(content):
        return (1 << bits) - 1 if bits < 16 else 0
    if content[:4] in _TIFF_MARKS:
        tags = _tiff_tags(content)
        if max(tags.get(258, [8])) in (10, 12, 14):
            return 65535  # OpenCV scales these to 16 bits
        maximum = max(tags.get(341, tags.get(281, [0])))
        return maximum if 255 < maximum < 65535 and maximum & (maximum + 1) == 0 else 0
    bits = max((max(data) for kind, data in _png_chunks(content) if kind == b"sBIT" and data), default=0)
    return (1 << bits) - 1 if 8 < bits <= 16 else 0


def _jpeg_2000_bits(content: bytes) -> int:
    """Return the precision in the SIZ segment of a JPEG 2000 file, in bits; 0 for other formats."""
    if content[4:8] != b"jP  " and content[:4] != b"\xff\x4f\xff\x51":
        return 0
    start = content.find(b"\xff\x4f\xff\x51", 0, HEADER_BYTES)
    return (content[start + 42] & 0x7F) + 1 if 0 <= start < len(content) - 42 else 0


def orientation(content: bytes) -> int:
    """Return the orientation of an image file as an EXIF value, from 1 (upright) to 8.

    JPEG, PNG and WebP files store the orientation in EXIF data. HEIC and AVIF files store it in the image properties
    ``irot`` and ``imir``, and their EXIF data is ignored. XMP data is ignored too, as in web browsers.
    """
    try:
        value = _orientation(content[:HEADER_BYTES] if content[:2] == b"\xff\xd8" else content)
    except (struct.error, IndexError, ValueError, zlib.error):
        return 1
    return value if 1 <= value <= 8 else 1


def _orientation_to_apply(content: bytes) -> int:
    # OpenCV's TIFF decoder always applies the orientation, even with IMREAD_IGNORE_ORIENTATION.
    return 1 if content[:4] in _TIFF_MARKS else orientation(content)


def _orientation(content: bytes) -> int:
    if content[:2] == b"\xff\xd8":
        return next((_exif_orientation(data) for data in _jpeg_exif(content)), 1)
    if content[:4] == b"\x89PNG":
        return next((_exif_orientation(data) for data in _png_exif(content)), 1)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return next((_exif_orientation(data) for kind, data in _riff_chunks(content) if kind == b"EXIF"), 1)
    if content[:4] in _TIFF_MARKS:
        return _exif_orientation(content)
    if content[4:8] == b"ftyp":
        return _heif_orientation(content)
    return 1


def _exif_orientation(data: bytes) -> int:
    """Return the orientation in EXIF data, which may begin with the identifier ``Exif\\0\\0``."""
    data = data[6:] if data[:4] == b"Exif" else data
    return _tiff_tags(data).get(ORIENTATION, [1])[0]


def _tiff_tags(data: bytes) -> dict[int, list[int]]:
    """Return the integer tags (BYTE, SHORT and LONG) of the first directory of a TIFF file."""
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        if struct.unpack_from(f"{order}H", data, 2)[0] != 42:
            return {}
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        tags = {}
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", data, place)
            letter, size = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4)}.get(kind, ("", 0))
            if not letter or not 1 <= number <= 16:
                continue
            at = place + 8 if size * number <= 4 else struct.unpack_from(f"{order}I", data, place + 8)[0]
            tags[tag] = list(struct.unpack_from(f"{order}{number}{letter}", data, at))
        return tags
    except (KeyError, struct.error):
        return {}


def _jpeg_exif(content: bytes) -> Iterator[bytes]:
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        kind, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if kind == 0xFF:  # a fill byte
            place += 1
            continue
        if kind in (0xDA, 0xD9):  # start of the pixels, or end of the image
            return
        data = content[place + 4 : place + 2 + length]
        if kind == 0xE1 and data[:6] == b"Exif\0\0":
            yield data
        place += 2 + max(length, 2)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8 if content[:8] == b"\x89PNG\r\n\x1a\n" else len(content)
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        if kind != b"IDAT":
            yield kind, content[place + 8 : place + 8 + length]
        place += 12 + length


def _png_exif(content: bytes) -> Iterator[bytes]:
    """Yield the EXIF data of a PNG file from its eXIf chunk, or from the text chunk of older ImageMagick versions."""
    profile = b""
    for kind, data in _png_chunks(content):
        if kind == b"eXIf":
            yield data
        elif kind in (b"zTXt", b"tEXt") and data[:21] in (b"Raw profile type exif", b"Raw profile type APP1"):
            text = data[22:]
            if kind == b"zTXt":
                text = zlib.decompressobj().decompress(text[1:], HEADER_BYTES)
            digits = re.sub(rb"\s", b"", text.split(b"\n", 3)[-1])
            profile = bytes.fromhex(digits[: len(digits) & ~1].decode("ascii", "replace"))
    if profile:
        yield profile


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    while place + 8 <= len(content):
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        yield content[place : place + 4], content[place + 8 : place + 8 + length]
        place += 8 + length + (length & 1)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, content start and content end of each box of an ISO base media file (ISO/IEC 14496-12)."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = end if size == 0 else start + size
        if (size and size < head) or stop > end:
            return
        yield kind, start + head, stop
        start = stop


def _box(data: bytes, kind: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the content start and end of the first box of type ``kind``; raise ValueError if there is none."""
    for name, begin, stop in _boxes(data, start, end):
        if name == kind:
            return begin, stop
    raise ValueError(f"no box {kind!r}")


def _heif_orientation(data: bytes) -> int:
    """Return the EXIF orientation equivalent to ``irot`` and ``imir`` of the primary image (ISO/IEC 23008-12)."""
    start, end = _box(data, b"meta", 0, len(data))
    start += 4
    at, _ = _box(data, b"pitm", start, end)
    wide = data[at] > 0
    primary = int.from_bytes(data[at + 4 : at + (8 if wide else 6)], "big")
    start, end = _box(data, b"iprp", start, end)
    properties = list(_boxes(data, *_box(data, b"ipco", start, end)))
    at, _ = _box(data, b"ipma", start, end)
    version, large = data[at], data[at + 3] & 1
    count, at = int.from_bytes(data[at + 4 : at + 8], "big"), at + 8
    for _ in range(count):
        size = 2 if version < 1 else 4
        item, number = int.from_bytes(data[at : at + size], "big"), data[at + size]
        at += size + 1
        width = 2 if large else 1
        entries = [int.from_bytes(data[at + i * width : at + (i + 1) * width], "big") for i in range(number)]
        at += number * width
        if item == primary:
            indices = [entry & (0x7FFF if large else 0x7F) for entry in entries]
            return _transformed(data, [properties[i - 1] for i in indices if 0 < i <= len(properties)])
    return 1


def _transformed(data: bytes, properties: list[tuple[bytes, int, int]]) -> int:
    """Return the EXIF orientation equivalent to the given ``irot`` and ``imir`` properties, applied in this order."""
    marks = np.arange(4).reshape(2, 2)
    image = marks
    for kind, begin, _ in properties:
        if kind == b"irot":
            image = np.rot90(image, data[begin] & 3)  # counterclockwise
        elif kind == b"imir":
            image = image[:, ::-1] if data[begin] & 1 else image[::-1]
    return next(value for value in range(1, 9) if np.array_equal(_turned(marks, value), image))


def _turned(image: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
    """Return an image rotated and mirrored to be upright; ``value`` is its EXIF orientation."""
    if value in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if value in (3, 4, 7, 8):
        image = image[::-1]
    if value in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


# Formats that OpenCV does not support


def is_heic(content: bytes) -> bool:
    """Return whether the content is a HEIC or HEIF file, the photo format of iPhones."""
    if content[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[8:12], *(content[i : i + 4] for i in range(16, size - 3, 4))}
    return bool(brands & _HEIC_BRANDS) and not brands & {b"avif", b"avis"}


def _decode_heic(content: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode a HEIC file with pillow-heif, which also applies the orientation; return None if this is not possible."""
    try:
        heif = require("pillow_heif")
    except ImportError:
        return None
    try:
        image = heif.open_heif(content, convert_hdr_to_8bit=True)
        return np.ascontiguousarray(np.asarray(image.to_pillow().convert("RGB")))
    except (ValueError, RuntimeError, OSError, SyntaxError):
        return None


def why_unreadable(content: bytes) -> str:
    """Explain for an error message why :func:`decode` cannot read a file, and how to fix this."""
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
        return "it is a damaged AVIF file, or this OpenCV reads no AVIF: convert it to JPEG or PNG"
    if content[:4] in _TIFF_MARKS and bits_per_sample(content) > 16:
        return "it is a TIFF file with 32-bit samples: save it with 16-bit or 8-bit samples"
    if content[:2] == b"\xff\x0a" or content[4:8] == b"JXL ":
        return "it is a JPEG XL file, which OpenCV does not read: convert it to JPEG or PNG"
    if content[128:132] == b"DICM":
        return "it is a DICOM file: export its images as 16-bit PNG"
    kind = describe(content)
    known = kind and not kind.endswith(("image", "(WebP, AVI or WAV)"))
    return f"it {kind}" if known else "OpenCV cannot decode it; expected JPEG, PNG, BMP, TIFF or WebP"


def _pnm_maximum(content: bytes) -> int:
    """Return the maximum in the header of a binary or plain PGM or PPM file; 0 for other files."""
    if content[:2] not in (b"P2", b"P3", b"P5", b"P6"):
        return 0
    words = re.sub(rb"#[^\n]*", b"", content[:1024]).split(maxsplit=4)
    return int(words[3]) if len(words) > 3 and words[3].isdigit() and len(words[3]) < 6 else 0
