"""Read an image's size, orientation and bit depth from the file header, without decoding pixels.

OpenCV does not report the bit depth, and OpenCV versions differ in how they apply the orientation. Pillow reports both,
but would be an additional dependency on devices.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

# Number of bytes at the start of an image file that are searched for its orientation and bit depth.
HEADER_BYTES = 1 << 20
ORIENTATION = 0x112
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNM_MARKS = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")


def image_size(content: bytes) -> tuple[int, int]:
    """Return the width and height before rotation, or ``(0, 0)`` if the format is unknown or the file is damaged.

    If a file contains several images, such as AVIF and HEIC files, return the size of the largest image.
    """
    try:
        return _image_size(content)
    except (struct.error, IndexError, ValueError, KeyError, StopIteration):
        return 0, 0


def _image_size(content: bytes) -> tuple[int, int]:
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return _pair(">II", content, 16)
    if content[:2] == b"\xff\xd8":
        height, width = next(
            struct.unpack_from(">HH", data, 1) for kind, data in _jpeg_segments(content) if kind in _JPEG_FRAME_HEADERS
        )
        return width, height
    if content[:2] == b"BM":
        width, height = _pair("<ii", content, 18)
        return abs(width), abs(height)
    if content[:4] == b"GIF8":
        return _pair("<HH", content, 6)
    if content[:4] in TIFF_MARKS:
        tags = _tiff_tags(content)
        return tags[256][0], tags[257][0]
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp_size(content)
    if content[:2] in _PNM_MARKS:
        width, height = _pnm_words(content)[1:3]
        return int(width[:10]), int(height[:10])
    if (start := _jpeg_2000_start(content)) >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", content, start + 8)
        return right - left, bottom - top
    if content[4:8] == b"ftyp":
        sizes = re.finditer(rb"ispe\0{4}(.{8})", content[:HEADER_BYTES], re.DOTALL)
        return max((_pair(">II", size[1], 0) for size in sizes), key=lambda size: size[0] * size[1], default=(0, 0))
    return 0, 0


def _pair(layout: str, content: bytes, offset: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, content, offset)
    return first, second


def _webp_size(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = _pair("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def bits_per_sample(content: bytes) -> int:
    """Return the bits per sample of a PNG, TIFF, JPEG 2000 or PNM file, or 8 for all other formats."""
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 24:
        return content[24]
    if content[:4] in TIFF_MARKS:
        return max(_tiff_tags(content).get(258, [8]))
    if bits := _jpeg_2000_bits(content):
        return bits
    return 16 if _pnm_maximum(content) > 255 else 8


def stated_white(content: bytes) -> int:
    """Return the maximum sample value stated in the header of an image with more than 8 bits per sample.

    The value is read from the significant bits (sBIT) of PNG, the maximum of PNM, the precision of JPEG 2000, and the
    bits per sample or MaxSampleValue of TIFF. Return 0 if the header does not state the value, or if it states 65535,
    because most programs write 65535 regardless of the samples.
    """
    if maximum := _pnm_maximum(content):
        return maximum if maximum < 65535 else 0
    if bits := _jpeg_2000_bits(content):
        return (1 << bits) - 1 if bits < 16 else 0
    if content[:4] in TIFF_MARKS:
        tags = _tiff_tags(content)
        if max(tags.get(258, [8])) in (10, 12, 14):
            return 65535  # OpenCV scales TIFF samples of 10, 12 and 14 bits to 16 bits.
        maximum = max(tags.get(341, tags.get(281, [0])))
        return maximum if 255 < maximum < 65535 and maximum & (maximum + 1) == 0 else 0
    bits = max((max(data) for kind, data in _png_chunks(content) if kind == b"sBIT" and data), default=0)
    return (1 << bits) - 1 if 8 < bits <= 16 else 0


def _jpeg_2000_bits(content: bytes) -> int:
    """Return the bit depth from a JPEG 2000 file's SIZ segment, or 0 for other formats."""
    start = _jpeg_2000_start(content)
    return (content[start + 42] & 0x7F) + 1 if 0 <= start < len(content) - 42 else 0


def _jpeg_2000_start(content: bytes) -> int:
    """Return the offset of a JPEG 2000 file's codestream, or -1 for other formats."""
    if content[4:8] != b"jP  " and content[:4] != b"\xff\x4f\xff\x51":
        return -1
    return content.find(b"\xff\x4f\xff\x51", 0, HEADER_BYTES)


def orientation(content: bytes) -> int:
    """Return an image file's EXIF orientation, from 1 (upright) to 8.

    JPEG, PNG and WebP files store the orientation in EXIF data. HEIC and AVIF files store it in the image properties
    ``irot`` and ``imir``, and their EXIF data is ignored. XMP data is ignored too, as in web browsers.
    """
    try:
        value = _orientation(content[:HEADER_BYTES] if content[:2] == b"\xff\xd8" else content)
    except (struct.error, IndexError, ValueError, zlib.error):
        return 1
    return value if 1 <= value <= 8 else 1


def orientation_to_apply(content: bytes) -> int:
    """Return the EXIF orientation to apply to an image after OpenCV has decoded it."""
    # OpenCV's TIFF decoder always applies the orientation, even with IMREAD_IGNORE_ORIENTATION.
    return 1 if content[:4] in TIFF_MARKS else orientation(content)


def _orientation(content: bytes) -> int:
    if content[:2] == b"\xff\xd8":
        segments = _jpeg_segments(content)
        exif = (data for kind, data in segments if kind == 0xE1 and data[:6] == b"Exif\0\0")
        return next((_exif_orientation(data) for data in exif), 1)
    if content[:4] == b"\x89PNG":
        return next((_exif_orientation(data) for data in _png_exif(content)), 1)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return next((_exif_orientation(data) for kind, data in _riff_chunks(content) if kind == b"EXIF"), 1)
    if content[:4] in TIFF_MARKS:
        return _exif_orientation(content)
    if content[4:8] == b"ftyp":
        return _heif_orientation(content)
    return 1


def _exif_orientation(data: bytes) -> int:
    data = data[6:] if data[:4] == b"Exif" else data
    return _tiff_tags(data).get(ORIENTATION, [1])[0]


def _tiff_tags(data: bytes) -> dict[int, list[int]]:
    """Return the integer tags (types BYTE, SHORT and LONG) in the first directory of a TIFF file."""
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        if struct.unpack_from(f"{order}H", data, 2)[0] != 42:
            return {}
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        tags = {}
        for offset in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", data, offset)
            letter, size = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4)}.get(kind, ("", 0))
            if not letter or not 1 <= number <= 16:
                continue
            at = offset + 8 if size * number <= 4 else struct.unpack_from(f"{order}I", data, offset + 8)[0]
            tags[tag] = list(struct.unpack_from(f"{order}{number}{letter}", data, at))
        return tags
    except (KeyError, struct.error):
        return {}


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and data of each JPEG segment that precedes the pixels."""
    offset = 2
    while offset + 4 <= len(content) and content[offset] == 0xFF:
        kind, length = content[offset + 1], int.from_bytes(content[offset + 2 : offset + 4], "big")
        if kind == 0xFF:  # a fill byte
            offset += 1
            continue
        if kind in (0xDA, 0xD9):  # The markers SOS (start of scan) and EOI (end of image) end the header.
            return
        yield kind, content[offset + 4 : offset + 2 + length]
        offset += 2 + max(length, 2)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 8 if content[:8] == b"\x89PNG\r\n\x1a\n" else len(content)
    while offset + 12 <= len(content):
        length = int.from_bytes(content[offset : offset + 4], "big")
        kind = content[offset + 4 : offset + 8]
        if kind != b"IDAT":
            yield kind, content[offset + 8 : offset + 8 + length]
        offset += 12 + length


def _png_exif(content: bytes) -> Iterator[bytes]:
    """Yield EXIF data from a PNG file's eXIf chunk, or from a text chunk written by old versions of ImageMagick."""
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
    offset = 12
    while offset + 8 <= len(content):
        length = int.from_bytes(content[offset + 4 : offset + 8], "little")
        yield content[offset : offset + 4], content[offset + 8 : offset + 8 + length]
        offset += 8 + length + (length & 1)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start offset and end offset of each box in an ISO base media file (ISO/IEC 14496-12)."""
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
    """Return the start and end offsets of the first box of type ``kind``. Raise ValueError if there is none."""
    for name, begin, stop in _boxes(data, start, end):
        if name == kind:
            return begin, stop
    raise ValueError(f"no box {kind!r}")


def _heif_orientation(data: bytes) -> int:
    """Convert the rotation and mirroring of a HEIF file's primary image to an EXIF orientation (ISO/IEC 23008-12)."""
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
            return _equivalent_orientation(data, [properties[i - 1] for i in indices if 0 < i <= len(properties)])
    return 1


def _equivalent_orientation(data: bytes, properties: list[tuple[bytes, int, int]]) -> int:
    marks = np.arange(4).reshape(2, 2)
    image = marks
    for kind, begin, _ in properties:
        if kind == b"irot":
            image = np.rot90(image, data[begin] & 3)  # counterclockwise
        elif kind == b"imir":
            image = image[:, ::-1] if data[begin] & 1 else image[::-1]
    return next(value for value in range(1, 9) if np.array_equal(turned(marks, value), image))


def _pnm_maximum(content: bytes) -> int:
    """Return the maximum sample value from a PGM or PPM header, or 0 for other files."""
    words = _pnm_words(content) if content[:2] in (b"P2", b"P3", b"P5", b"P6") else []
    return int(words[3]) if len(words) > 3 and words[3].isdigit() and len(words[3]) < 6 else 0


def _pnm_words(content: bytes) -> list[bytes]:
    return re.sub(rb"#[^\n]*", b"", content[:1024]).split(maxsplit=4)


def turned(image: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
    """Rotate and mirror an image to make it upright. ``value`` is its EXIF orientation."""
    if value in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if value in (3, 4, 7, 8):
        image = image[::-1]
    if value in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
