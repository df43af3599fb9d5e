"""Split a byte stream into JPEG files, and decode complete files.

OpenCV alone is not sufficient, because libjpeg fills missing parts of an image with gray instead of reporting an error.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

from edgerec.contract.image_decoding import color_flag
from edgerec.contract.preprocess import Image
from edgerec.utils.native_output import captured_stderr

MAX_PIXELS = 64 << 20
START_MARKER, END_MARKER = b"\xff\xd8\xff", b"\xff\xd9"
# Matches markers in a scan, except restart markers, escaped FF bytes and fill bytes.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xE0), *range(0xE0, 0xF0), 0xFE, 0xDA}
_SCAN, _END = 0xDA, 0xD9
_FILL = re.compile(rb"\xff+")
# JPEG files that exceed these limits are rejected, because decoding them could take very long.
_MAX_PIXELS_PER_BYTE, _MAX_SCANS = 512, 64
# Maximum number of bytes that JpegSplitter parses again to find a JPEG file inside an invalid one.
_MAX_REPARSED_BYTES = 256 << 10
_SCAN_START, _RESTART_INTERVAL = b"\xff\xda", b"\xff\xdd"
# libjpeg fills the missing pixels of a truncated file with _FILLED. Appending _EXTRA_DATA changes these pixels.
_FILLED, _EXTRA_DATA = b"\x80\x80\x80", bytes(range(1, 255))
_LIBJPEG_WARNING = b"Corrupt JPEG data"


class JpegSplitter:
    """Extracts complete JPEG files from a byte stream.

    The markers of each file are parsed (ITU-T T.81, annex B). Therefore the end of an embedded thumbnail is not
    mistaken for the end of the file, and truncated files are dropped. The parsing time is proportional to the number of
    bytes, even if start markers occur at many positions.
    """

    def __init__(self, boundary: bytes = b"") -> None:
        """Create a splitter. ``boundary`` is the byte string between files, or empty if there is none."""
        self._boundary = boundary
        self._bytes = bytearray()
        self._reparse_bytes = 0  # Number of bytes that may be parsed again after an invalid file.
        self._restart()

    @property
    def waiting(self) -> int:
        """Number of bytes buffered for an incomplete file."""
        return len(self._bytes)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Add received bytes and return all completed files in stream order."""
        self._bytes += chunk
        self._reparse_bytes = min(self._reparse_bytes + len(chunk), _MAX_REPARSED_BYTES)
        files = []
        while self._at or self._find_start():
            end = self._parse()
            if end is None:
                break
            limit = end or self._at
            boundary_at = self._bytes.find(self._boundary, 0, limit) if self._boundary else -1
            if end and boundary_at < 0:
                files.append(bytes(self._bytes[:end]))
                del self._bytes[:end]
            elif boundary_at > 0:
                del self._bytes[:boundary_at]
            elif self._reparse_bytes >= limit:  # The next JPEG file may start in the parsed bytes.
                self._reparse_bytes -= limit
                del self._bytes[:2]
            else:
                del self._bytes[: max(2, self._at)]
            self._restart()
        return files

    def _restart(self) -> None:
        self._at = 0  # Offset at which parsing resumes, or 0 if no file has been found yet.
        self._in_scan = False
        self._pixels = self._scans = 0

    def _find_start(self) -> bool:
        start = self._bytes.find(START_MARKER)
        if start < 0:
            del self._bytes[: max(0, len(self._bytes) - 2)]
            return False
        del self._bytes[:start]
        self._at = 2
        return True

    def _parse(self) -> int | None:
        """Parse JPEG markers. Return the file's end offset, 0 if the file is invalid, or None if it is incomplete."""
        data = self._bytes
        while True:
            if self._in_scan:
                marker = _MARKER.search(data, self._at)
                if marker is None:
                    self._at = max(self._at, len(data) - 1)
                    return None
                self._at = marker.start()
            if len(data) < self._at + 2:
                return None
            if data[self._at] != 0xFF:
                return 0
            kind = data[self._at + 1]
            if kind == 0xFF and (fill := _FILL.match(data, self._at)):
                self._at = fill.end() - 1
                continue
            if kind == _END:
                return self._at + 2 if self._in_scan and self._is_fast_to_decode() else 0
            if kind not in _SEGMENTS:
                return 0
            if len(data) < self._at + (9 if kind in _FRAME_HEADERS else 4):
                return None
            if kind in _FRAME_HEADERS:
                height, width = (int.from_bytes(data[self._at + i : self._at + i + 2], "big") for i in (5, 7))
                self._pixels = max(self._pixels, height * width)
                if not 0 < height * width <= MAX_PIXELS:
                    return 0
            length = int.from_bytes(data[self._at + 2 : self._at + 4], "big")
            if length < 2:
                return 0
            self._in_scan = kind == _SCAN
            self._scans += self._in_scan
            self._at += 2 + length

    def _is_fast_to_decode(self) -> bool:
        return self._scans <= _MAX_SCANS and self._pixels <= _MAX_PIXELS_PER_BYTE * self._at


def decoded(cv2: Any, jpeg: bytes, reduction: int = 1) -> Image | None:
    """Decode a JPEG file to a uint8 RGB image of shape ``(H, W, 3)``, a view of OpenCV's BGR image.

    A ``reduction`` of 2, 4 or 8 decodes it at 1/2, 1/4 or 1/8 of its size, rounded up.

    Return None if OpenCV cannot decode the file or if image data are missing. Other damage cannot be detected, because
    JPEG has no checksums.
    """
    if not _restart_markers_in_order(jpeg):
        return None
    image = _decoded(cv2, jpeg, reduction)
    if image is None:
        return None
    # Pixels that libjpeg has filled with gray change if data is appended to the file.
    # Not all of these changes are visible at a reduced size.
    if any(image[y, x].tobytes() == _FILLED for y in (0, -1) for x in (0, -1)):
        complete = image if reduction == 1 else _decoded(cv2, jpeg)
        longer = _decoded_quietly(cv2, jpeg[:-2] + _EXTRA_DATA + jpeg[-2:])
        if complete is None or longer is None or not np.array_equal(complete, longer):
            return None
    return image[:, :, ::-1]


def _restart_markers_in_order(jpeg: bytes) -> bool:
    """Return True if the last scan contains all of its restart markers, which cycle from D0 to D7."""
    if _RESTART_INTERVAL not in jpeg[: jpeg.find(_SCAN_START)]:  # Most cameras do not use restart markers.
        return True
    data = np.frombuffer(jpeg, np.uint8)
    kinds = data[np.flatnonzero(data[:-1] == 0xFF) + 1]
    scans = np.flatnonzero(kinds == _SCAN)
    kinds = kinds[scans[-1] :] if len(scans) else kinds
    restarts = kinds[kinds & 0xF8 == 0xD0]
    return not len(restarts) or np.array_equal(restarts, 0xD0 + np.arange(len(restarts)) % 8)


def _decoded_quietly(cv2: Any, jpeg: bytes) -> Image | None:
    """Decode a JPEG file with extra bytes, suppressing libjpeg's warning about them."""
    with captured_stderr() as captured:
        image = _decoded(cv2, jpeg)
        captured.seek(0)
        output = captured.read()
    # Print the output that other threads wrote to stderr during the capture.
    other_output = b"".join(line for line in output.splitlines(keepends=True) if not line.startswith(_LIBJPEG_WARNING))
    if other_output and sys.stderr:
        sys.stderr.write(other_output.decode(errors="backslashreplace"))
    return image


def _decoded(cv2: Any, jpeg: bytes, reduction: int = 1) -> Image | None:
    try:
        return cv2.imdecode(np.frombuffer(jpeg, np.uint8), color_flag(reduction))
    except cv2.error:
        return None
