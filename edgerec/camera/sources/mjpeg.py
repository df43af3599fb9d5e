"""Sources that read MJPEG streams, or single images, over HTTP.

FFmpeg is not used here, because it fills incomplete images with gray and waits too long for a silent server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from edgerec.camera.sources.base import CaptureFormat, Source
from edgerec.camera.sources.http import HttpStream
from edgerec.camera.sources.jpeg import END_MARKER, START_MARKER, JpegSplitter, decoded
from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import Image
from edgerec.contract.reduced_decoding import ReductionChooser, jpeg_reduction
from edgerec.errors import SourceError
from edgerec.utils.optional import require
from edgerec.utils.url_redaction import Url

# Maximum time in seconds between two complete images.
IMAGE_S = 10.0
MAX_IMAGE_BYTES = 32 << 20
# Maximum time in seconds for skipping outdated images that have already arrived.
_OVERTAKE_S = 0.1

_MOTION_JPEG = ("multipart/", "image/jpeg", "video/x-motion-jpeg", "video/mjpeg", "video/x-jpeg")
# Default number of requests per second to a server that returns one image per request.
SNAPSHOT_FPS = 2.0


def open_web(url: Url, fps: float = 0.0, choose_reduction: ReductionChooser | None = None) -> Source:
    """Open a URL that serves an MJPEG stream, a single image or a stream supported by FFmpeg.

    Args:
        url: the address, which may contain a user name and a password.
        fps: requests per second if the address returns a single image. 0 means :data:`SNAPSHOT_FPS`.
        choose_reduction: function that returns the factor by which to reduce a JPEG image when decoding it. None
            decodes at full size.

    Raises:
        SourceError: the address cannot be opened, or returns a web page.
    """
    stream, name = HttpStream(url), str(url)
    kind = stream.content_type
    if kind.startswith("multipart/"):
        return MjpegSource(stream, name, choose_reduction=choose_reduction)
    # Some cameras declare an MJPEG stream as image/jpeg, but without a Content-Length.
    if stream.length is not None and (kind.startswith("image/") or kind in ("", "application/octet-stream")):
        return SnapshotSource(stream, url, fps, choose_reduction)
    if kind.startswith(_MOTION_JPEG):
        return MjpegSource(
            stream,
            name,
            snapshots=lambda: SnapshotSource(None, url, fps, choose_reduction),
            choose_reduction=choose_reduction,
        )
    stream.close()
    if kind.startswith("image/"):
        return SnapshotSource(None, url, fps, choose_reduction)
    if kind == "text/html":
        raise SourceError(
            f"{name} is a web page, not an image or a stream: use the address of the camera's image or stream, which "
            "often ends in .jpg, .mjpg or /stream"
        )
    from edgerec.camera.sources.opencv_capture import OpenCVSource

    return OpenCVSource.stream(url)


class SnapshotSource:
    """A source that requests one image at a time from an address, at regular intervals.

    Attributes:
        period_s: seconds between requests.
        full_size: width and height of the current image before its reduction, or None if it was not reduced.
    """

    def __init__(
        self,
        stream: HttpStream | None,
        url: Url,
        fps: float = 0.0,
        choose_reduction: ReductionChooser | None = None,
    ) -> None:
        """Create the source. ``stream`` is the first request's response, or None if no request has been sent yet."""
        self.name, self.format = str(url), CaptureFormat()
        self.period_s = 1 / (fps or SNAPSHOT_FPS)
        self.full_size: tuple[int, int] | None = None
        self._url, self._stream, self._choose_reduction = url, stream, choose_reduction
        self._stopped = threading.Event()

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield one image per request.

        Raises:
            SourceError: a request failed.
        """
        due_s = time.monotonic()
        while not self._stopped.is_set():
            if self._stream is None:
                self._stream = HttpStream(self._url)
                if self._stopped.is_set():  # interrupt() was called during the connection attempt.
                    return
            image = self._decoded(self._body(self._stream))
            self.close()
            width, height = self.full_size or image.shape[1::-1]
            self.format = CaptureFormat(width, height)
            yield image, self.name
            # After a slow request, skip missed requests and send the next request immediately.
            due_s = max(due_s + self.period_s, time.monotonic())
            self._stopped.wait(due_s - time.monotonic())

    def interrupt(self) -> None:
        """Stop waiting for the next request or response. May be called from another thread."""
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
        reduction, self.full_size = jpeg_reduction(content, self._choose_reduction)
        if content.startswith(START_MARKER):
            cv2, files = require("cv2"), JpegSplitter().feed(content + END_MARKER)
            image = next((decoded(cv2, file, reduction) for file in files), None)
        else:
            image = decode(content)
        if image is None:
            raise SourceError(
                f"{self.name} sent {len(content):,} bytes that are not a complete image: check the address"
            )
        return image


class MjpegSource:
    """A source that reads an MJPEG stream. The size in ``format`` is unknown until the first image arrives.

    Attributes:
        overtaken: number of complete images that were not decoded because a newer image had arrived.
    """

    def __init__(
        self,
        stream: HttpStream,
        name: str,
        snapshots: Callable[[], SnapshotSource] | None = None,
        choose_reduction: ReductionChooser | None = None,
    ) -> None:
        """Create the source. If ``stream`` ends after one image, ``snapshots()`` returns the source to use instead."""
        self.name, self.format = name, CaptureFormat(fourcc="MJPG")
        self._open_snapshots, self._choose_reduction = snapshots, choose_reduction
        self._full_size: tuple[int, int] | None = None
        self._snapshots: SnapshotSource | None = None
        self._interrupted = False
        self.overtaken = 0
        self._received = 0
        self._stream = stream
        # A short boundary is recognized only at the start of a line, because it can occur in image data by chance.
        prefix = b"\r\n--" if len(stream.boundary) < 4 else b"--"
        self._splitter = JpegSplitter(prefix + stream.boundary.encode("latin-1", "replace") if stream.boundary else b"")

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield complete images, skipping all but the newest if several have arrived.

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
            reduction, full_size = jpeg_reduction(newest or b"", self._choose_reduction)
            image = decoded(cv2, newest or b"", reduction)
            if image is None:  # The image is damaged, or OpenCV does not support its format.
                continue
            self._full_size = full_size
            width, height = full_size or image.shape[1::-1]
            self.format = CaptureFormat(width, height, 0.0, "MJPG")
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

    @property
    def full_size(self) -> tuple[int, int] | None:
        """Width and height of the current image before its reduction, or None if it was not reduced."""
        return self._snapshots.full_size if self._snapshots is not None else self._full_size

    def _newest(self) -> bytes | None:
        """Return the stream's newest complete JPEG file, or None if the address returns only one image per request."""
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
