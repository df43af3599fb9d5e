"""Sources that read MJPEG streams, or single images, over HTTP.

FFmpeg is not used here, because it fills incomplete images with gray and waits too long for a silent server.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgerec.camera.sources.base import CaptureFormat, Source
from edgerec.camera.sources.http import HttpStream
from edgerec.contract.image_files import decode
from edgerec.contract.preprocess import Image
from edgerec.errors import SourceError
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require
from edgerec.utils.urls import Url

# Maximum time in seconds from one complete image to the next. The supervisor usually reconnects earlier.
IMAGE_S = 10.0
MAX_IMAGE_BYTES = 32 << 20
MAX_PIXELS = 64 << 20
# Maximum time in seconds to look for a newer image in the bytes that have already arrived.
_OVERTAKE_S = 0.1

_MOTION_JPEG = ("multipart/", "image/jpeg", "video/x-motion-jpeg", "video/mjpeg", "video/x-jpeg")
_START = b"\xff\xd8\xff"
# Matches a marker in a scan. FF 00 (a data byte FF), FF D0 to FF D7 (restart) and FF FF (fill bytes) do not match.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xE0), *range(0xE0, 0xF0), 0xFE, 0xDA}
_SCAN, _END = 0xDA, 0xD9
_FILL = re.compile(rb"\xff+")
# Files above these limits are rejected, because decoding them could take very long. Valid files are below the limits:
# a block of 8x8 pixels has at least one bit, camera images have one scan, and progressive files have about 10 scans.
_MAX_PIXELS_PER_BYTE, _MAX_SCANS = 512, 64
# Maximum number of bytes that JpegSplitter may parse again to find a JPEG file inside an invalid file.
_MAX_REPARSED_BYTES = 256 << 10
_END_MARKER = b"\xff\xd9"
_SCAN_START, _RESTART_INTERVAL = b"\xff\xda", b"\xff\xdd"
# libjpeg fills missing pixels with _FILLED. If _EXTRA_DATA is appended to a truncated file, these pixels change.
_FILLED, _EXTRA_DATA = b"\x80\x80\x80", bytes(range(1, 255))
_LIBJPEG_WARNING = b"Corrupt JPEG data"


# Default number of requests per second for an address that returns one image per request.
SNAPSHOT_FPS = 2.0


def open_web(url: Url, fps: float = 0.0) -> Source:
    """Open a URL that serves an MJPEG stream, a single image, or a stream that FFmpeg can read.

    Args:
        url: the address, which may contain a user name and a password.
        fps: requests per second if the address returns a single image. 0 means :data:`SNAPSHOT_FPS`.

    Raises:
        SourceError: the address cannot be opened, or returns a web page.
    """
    stream, name = HttpStream(url), str(url)
    kind = stream.content_type
    if kind.startswith("multipart/"):
        return MjpegSource(stream, name)
    # Some cameras declare an MJPEG stream as image/jpeg. Such a response has no Content-Length.
    if stream.length is not None and (kind.startswith("image/") or kind in ("", "application/octet-stream")):
        return SnapshotSource(stream, url, fps)
    if kind.startswith(_MOTION_JPEG):
        return MjpegSource(stream, name, snapshots=lambda: SnapshotSource(None, url, fps))
    stream.close()
    if kind.startswith("image/"):
        return SnapshotSource(None, url, fps)
    if kind == "text/html":
        raise SourceError(
            f"{name} is a web page, not an image or a stream: use the address of the camera's image or stream, which "
            "often ends in .jpg, .mjpg or /stream"
        )
    from edgerec.camera.sources.opencv_capture import OpenCVSource

    return OpenCVSource.stream(url)


class SnapshotSource:
    """A source that requests a single image from an address at regular intervals.

    Attributes:
        period_s: seconds between two requests.
    """

    def __init__(self, stream: HttpStream | None, url: Url, fps: float = 0.0) -> None:
        """Create the source. ``stream`` is the response to the first request, or None if no request was sent yet."""
        self.name, self.format = str(url), CaptureFormat()
        self.period_s = 1 / (fps or SNAPSHOT_FPS)
        self._url, self._stream = url, stream
        self._stopped = threading.Event()

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield the image of each request; raise :class:`SourceError` when a request fails."""
        due_s = time.monotonic()
        while not self._stopped.is_set():
            if self._stream is None:
                self._stream = HttpStream(self._url)
                if self._stopped.is_set():  # interrupt() was called while connecting
                    return
            image = self._decoded(self._body(self._stream))
            self.close()
            self.format = CaptureFormat(image.shape[1], image.shape[0])
            yield image, self.name
            # After a slow request, the next request is sent immediately, and missed requests are skipped.
            due_s = max(due_s + self.period_s, time.monotonic())
            self._stopped.wait(due_s - time.monotonic())

    def interrupt(self) -> None:
        """Stop waiting for the next request or for a response. May be called from another thread."""
        self._stopped.set()
        if (stream := self._stream) is not None:
            stream.interrupt()

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _body(self, stream: HttpStream) -> bytes:
        stream.deadline_s = time.monotonic() + IMAGE_S
        content = bytearray()
        try:
            while chunk := stream.read():
                content += chunk
                if len(content) > MAX_IMAGE_BYTES:
                    raise SourceError(
                        f"{self.name} sent more than {MAX_IMAGE_BYTES >> 20} MB for one image: check that this is the "
                        "address of an image"
                    )
        except TimeoutError:
            raise SourceError(f"{self.name} sent no complete image within {IMAGE_S:g} s: check the network") from None
        except OSError as error:
            raise SourceError(
                f"{self.name} closed the connection before the image was complete ({error}): check the network"
            ) from None
        if stream.length not in (None, len(content)):
            raise SourceError(
                f"{self.name} sent only {len(content)} of {stream.length} bytes of an image: check the network"
            )
        return bytes(content)

    def _decoded(self, content: bytes) -> Image:
        if content.startswith(_START):
            image = next((decoded(require("cv2"), file) for file in JpegSplitter().feed(content + _END_MARKER)), None)
        else:
            image = decode(content)
        if image is None:
            raise SourceError(
                f"{self.name} sent {len(content):,} bytes that are not a complete image: check the address"
            )
        return image


class MjpegSource:
    """A source that reads an MJPEG stream. The size in ``format`` is known after the first image.

    Attributes:
        overtaken: number of complete images that were not decoded because a newer image had arrived.
    """

    def __init__(self, stream: HttpStream, name: str, snapshots: Callable[[], SnapshotSource] | None = None) -> None:
        """Create the source. If ``stream`` ends after one image, images come from the source ``snapshots()``."""
        self.name, self.format = name, CaptureFormat(fourcc="MJPG")
        self._open_snapshots = snapshots
        self._snapshots: SnapshotSource | None = None
        self._interrupted = False
        self.overtaken = 0
        self._received = 0
        self._stream = stream
        # A short boundary may occur in image data by chance, so it counts only at the start of a line.
        prefix = b"\r\n--" if len(stream.boundary) < 4 else b"--"
        self._splitter = JpegSplitter(prefix + stream.boundary.encode("latin-1", "replace") if stream.boundary else b"")

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield complete images. If several have arrived, yield only the newest.

        Raises:
            SourceError: the stream has ended, or no complete image arrives in time.
        """
        cv2 = require("cv2")
        while True:
            newest = self._newest()
            if newest is None and self._open_snapshots is not None:
                self._snapshots = self._open_snapshots()
                yield from self._snapshots.images() if not self._interrupted else ()
                return
            image = decoded(cv2, newest or b"")
            if image is None:  # the image is damaged, or OpenCV does not support its format
                continue
            self.format = CaptureFormat(image.shape[1], image.shape[0], 0.0, "MJPG")
            yield image, self.name

    def interrupt(self) -> None:
        """Stop waiting for data. May be called from another thread."""
        self._interrupted = True
        self._stream.interrupt()
        if self._snapshots is not None:
            self._snapshots.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        if self._snapshots is not None:
            self._snapshots.close()

    @property
    def period_s(self) -> float:
        """Polling interval in seconds if the address returns one image per request, otherwise 0."""
        return self._snapshots.period_s if self._snapshots is not None else 0.0

    def _newest(self) -> bytes | None:
        """Return the newest complete JPEG file, or None if the address returns one image per request."""
        before, stream, newest, until_s = self._received, self._stream, None, 0.0
        stream.deadline_s = time.monotonic() + IMAGE_S
        while newest is None or (time.monotonic() < until_s and stream.waiting()):
            try:
                chunk = stream.read()
            except TimeoutError:
                raise SourceError(
                    f"{self.name} sent no complete image for {IMAGE_S:g} s, after {self._received} images: check the "
                    "camera and the network"
                ) from None
            except OSError as error:
                raise SourceError(
                    f"the connection to {self.name} was lost after {self._received} images ({error}): check the network"
                ) from None
            if not chunk:
                if newest is not None:
                    break
                if self._received == 1 and self._open_snapshots is not None:
                    return None
                raise SourceError(
                    f"{self.name} stopped after {self._received} images: check that the camera is still connected"
                )
            files = self._splitter.feed(chunk)
            if self._splitter.waiting > MAX_IMAGE_BYTES:
                raise SourceError(
                    f"{self.name} sent an image larger than {MAX_IMAGE_BYTES >> 20} MB: check that this is the "
                    "address of an MJPEG stream"
                )
            if files and newest is None:
                until_s = time.monotonic() + _OVERTAKE_S
            newest = files[-1] if files else newest
            self._received += len(files)
        self.overtaken += self._received - before - 1
        return newest


class JpegSplitter:
    """Extracts complete JPEG files from a stream of bytes.

    The markers of each file are parsed (ITU-T T.81, annex B). Therefore the end of an embedded thumbnail is not
    mistaken for the end of the file, and truncated files are dropped. The parsing time is proportional to the number of
    bytes, even if start markers occur at many positions.
    """

    def __init__(self, boundary: bytes = b"") -> None:
        """Create a splitter. ``boundary`` is the byte string that separates files, or empty if there is none."""
        self._boundary = boundary
        self._bytes = bytearray()
        self._reparse_bytes = 0  # number of bytes that may be parsed again after an invalid file
        self._restart()

    @property
    def waiting(self) -> int:
        """Number of buffered bytes of an incomplete file."""
        return len(self._bytes)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Add received bytes, and return the files that are now complete, in the order of the stream."""
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
            elif self._reparse_bytes >= limit:  # search the parsed bytes, because the next file may start there
                self._reparse_bytes -= limit
                del self._bytes[:2]
            else:
                del self._bytes[: max(2, self._at)]
            self._restart()
        return files

    def _restart(self) -> None:
        self._at = 0  # parsing position in the buffer, or 0 if no file has been found yet
        self._in_scan = False
        self._pixels = self._scans = 0

    def _find_start(self) -> bool:
        start = self._bytes.find(_START)
        if start < 0:
            del self._bytes[: max(0, len(self._bytes) - 2)]
            return False
        del self._bytes[:start]
        self._at = 2
        return True

    def _parse(self) -> int | None:
        """Parse JPEG markers. Return the end offset of the file, 0 if it is invalid, or None if it is incomplete."""
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
        """Return whether the file is within the limits on the number of scans and of pixels per byte."""
        return self._scans <= _MAX_SCANS and self._pixels <= _MAX_PIXELS_PER_BYTE * self._at


def decoded(cv2: Any, jpeg: bytes) -> Image | None:
    """Decode a JPEG file to an image, uint8 ``(H, W, 3)`` RGB, as a view of the BGR image that OpenCV returns.

    Return None if OpenCV cannot decode the file or if image data are missing. Other damage cannot be detected, because
    JPEG has no checksum.
    """
    if not _restart_markers_in_order(jpeg):
        return None
    image = _decoded(cv2, jpeg)
    if image is None:
        return None
    # If data is missing, libjpeg fills the rest of the image with gray. A complete image may also have a corner with
    # this gray. To distinguish the two cases, append data and decode again: only filled pixels change.
    if any(image[y, x].tobytes() == _FILLED for y in (0, -1) for x in (0, -1)):
        longer = _decoded_quietly(cv2, jpeg[:-2] + _EXTRA_DATA + jpeg[-2:])
        if longer is None or not np.array_equal(image, longer):
            return None
    return image[:, :, ::-1]


def _restart_markers_in_order(jpeg: bytes) -> bool:
    """Return whether the restart markers of the last scan are complete, i.e. cycle from D0 to D7."""
    if _RESTART_INTERVAL not in jpeg[: jpeg.find(_SCAN_START)]:  # most cameras use no restart markers
        return True
    data = np.frombuffer(jpeg, np.uint8)
    kinds = data[np.flatnonzero(data[:-1] == 0xFF) + 1]
    scans = np.flatnonzero(kinds == _SCAN)
    kinds = kinds[scans[-1] :] if len(scans) else kinds
    restarts = kinds[kinds & 0xF8 == 0xD0]
    return not len(restarts) or np.array_equal(restarts, 0xD0 + np.arange(len(restarts)) % 8)


def _decoded_quietly(cv2: Any, jpeg: bytes) -> Image | None:
    """Decode a JPEG file that has extra bytes, and suppress libjpeg's warning about them."""
    with captured_stderr() as captured:
        image = _decoded(cv2, jpeg)
        captured.seek(0)
        output = captured.read()
    # Print the lines that other threads wrote to stderr while it was captured.
    other_output = b"".join(line for line in output.splitlines(keepends=True) if not line.startswith(_LIBJPEG_WARNING))
    if other_output and sys.stderr:
        sys.stderr.write(other_output.decode(errors="backslashreplace"))
    return image


def _decoded(cv2: Any, jpeg: bytes) -> Image | None:
    try:
        return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
