"""A source that uses OpenCV to read cameras, video files, and RTSP and HTTP streams."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgerec.camera.sources.base import NOMINAL_FPS, CaptureFormat
from edgerec.camera.sources.sockets import PeerSocket
from edgerec.contract.preprocess import Image
from edgerec.errors import SourceError
from edgerec.runtime.device_users import programs_using
from edgerec.utils.optional import require
from edgerec.utils.url_redaction import Url

# FFmpeg's timeouts in milliseconds for opening a stream and for reading from a stream.
OPEN_MS = 10_000
READ_MS = 5_000


class OpenCVSource:
    """A source that reads an open ``cv2.VideoCapture``.

    Attributes:
        position_s: timestamp of a video file's current image in seconds, or None for live sources.
    """

    def __init__(self, capture: Any, name: str, *, live: bool) -> None:
        self.name = name
        self.live = live
        self.position_s: float | None = None
        self._capture = capture
        self._peer = PeerSocket()
        cv2 = require("cv2")
        keys = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FOURCC)
        # Drivers and damaged files may report any number, even infinity or NaN.
        width, height, fps, fourcc = (value if abs(value) < 2**32 else 0.0 for value in map(capture.get, keys))
        # The highest bit of a FourCC code marks big-endian formats.
        letters = (int(fourcc) & 0x7FFFFFFF).to_bytes(4, "little")
        self.format = CaptureFormat(
            max(0, int(width)),
            max(0, int(height)),
            fps if 0 < fps < 1000 else 0.0,
            letters.decode("ascii") if letters.isascii() and letters.decode("ascii").isprintable() else "",
        )

    @classmethod
    def camera(cls, device: int | str, requested: CaptureFormat) -> OpenCVSource:
        """Open a camera by index or device file, and request an image format."""
        capture = _open(device)
        if capture is None:
            path = f"/dev/video{device}" if isinstance(device, int) else device
            if users := programs_using(path):
                raise SourceError(
                    f"camera {device} is in use by {', '.join(users)}: stop that program, or use another camera"
                )
            paths = sorted(str(path) for path in Path("/dev").glob("video*"))
            available = f"the system has {', '.join(paths)}" if paths else "the system has no camera"
            raise SourceError(
                f"camera {device} cannot be opened ({available}): check that the camera is connected and that your "
                "user is in the group 'video'"
            )
        cv2 = require("cv2")
        # Set the pixel format first because the available sizes and rates depend on it.
        if requested.fourcc:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*requested.fourcc))
        if requested.width:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, requested.width)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, requested.height)
        if requested.fps:
            capture.set(cv2.CAP_PROP_FPS, requested.fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # A small buffer reduces latency if the driver supports it.
        return cls(capture, str(device), live=True)

    @classmethod
    def stream(cls, url: Url) -> OpenCVSource:
        """Open an RTSP or HTTP stream.

        Raises:
            SourceError: the stream cannot be opened.
        """
        cv2 = require("cv2")
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
        peer, name = PeerSocket(), str(url)
        if url.scheme.startswith("rtsp"):
            from edgerec.camera.sources.rtsp import without_redirects  # loads http.client and ssl

            url = without_redirects(url)
        with peer.detect(url.port):
            capture = _open(url.raw, cv2.CAP_FFMPEG, limits)
        if capture is None:
            peer.close()
            raise SourceError(f"{name} cannot be opened: check the address and that the stream is running")
        source = cls(capture, name, live=True)
        source._peer = peer
        return source

    @classmethod
    def video(cls, path: Path) -> OpenCVSource:
        """Open a video file.

        Raises:
            SourceError: OpenCV cannot read the file.
        """
        capture = _open(str(path))
        if capture is None:
            raise SourceError(
                f"{path} is not a video that OpenCV can read: check the file, or convert it to another format"
            )
        return cls(capture, str(path), live=False)

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield the frames of a camera, stream or video file.

        Raises:
            SourceError: a live source has stopped, or a video has no frames.
        """
        count, reported_s, cv2 = 0, 0.0, require("cv2")
        while True:
            ok, image = self._capture.read()
            if not ok or image is None or not image.size:
                break
            count += 1
            if not self.live:
                reported_s, last_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, reported_s
                # OpenCV's reported position may stall or jump back, e.g. in raw streams and concatenated files.
                step_s = reported_s - last_s if reported_s > last_s else 1 / (self.format.fps or NOMINAL_FPS)
                self.position_s = 0.0 if self.position_s is None else self.position_s + step_s
            yield cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image[:, :, ::-1], self.name
        if self.live:
            raise SourceError(f"{self.name} stopped after {count} images: check that the camera is still connected")
        if not count:
            raise SourceError(f"{self.name} has no frames that OpenCV can decode: convert the file to another format")

    def interrupt(self) -> None:
        """Interrupt a read that is waiting for a server. May be called from another thread."""
        self._peer.shut_down()

    def close(self) -> None:
        """Release the device or file."""
        self._capture.release()
        self._peer.close()


def _open(device: int | str, backend: int = 0, parameters: list[int] | None = None) -> Any | None:
    cv2 = require("cv2")
    prepare(cv2)
    capture = cv2.VideoCapture(device, backend, parameters or [])
    if capture.isOpened():
        return capture
    capture.release()
    return None


_prepared = threading.Lock()
# FFmpeg options that prefer TCP for RTSP and discard corrupt packets, which would cause incomplete images.
_FFMPEG = {"OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_flags;prefer_tcp|fflags;discardcorrupt"}
# FFmpeg's log messages are disabled, because edgerec reports each error itself.
_QUIET = {"OPENCV_FFMPEG_LOGLEVEL": "-8"}


def prepare(cv2: Any) -> None:
    """Set OpenCV's environment variables unless the user has set them."""
    with _prepared:
        for name, value in (_FFMPEG | _QUIET).items():
            os.environ.setdefault(name, value)
        if "OPENCV_LOG_LEVEL" not in os.environ:
            # OpenCV 4 and 5 provide setLogLevel in different modules. Level 0 turns off logging.
            (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)
