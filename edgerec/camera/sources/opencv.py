"""Everything that OpenCV opens: cameras, video files, RTSP and HTTP streams."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.preprocess import Image
from edgerec.contract.stderr import captured_stderr
from edgerec.errors import SourceError
from edgerec.optional import require

TIMEOUT_MS = 10_000


class OpenCVSource:
    """A ``cv2.VideoCapture`` that opened."""

    def __init__(self, capture: Any, name: str, *, live: bool) -> None:
        self.name = name
        self.live = live
        self._capture = capture

    @classmethod
    def camera(cls, device: int | str) -> OpenCVSource:
        """The camera with that index, or device file."""
        capture = _open(device)
        if capture is None:
            found = sorted(str(path) for path in Path("/dev").glob("video*"))
            there = f"the system has {', '.join(found)}" if found else "the system shows no camera"
            raise SourceError(
                f"camera {device} does not open: {there}; is it plugged in, free, and are you in the group video?"
            )
        capture.set(require("cv2").CAP_PROP_BUFFERSIZE, 1)  # where the driver takes it: less delay
        return cls(capture, str(device), live=True)

    @classmethod
    def stream(cls, url: str) -> OpenCVSource:
        """An RTSP or HTTP address."""
        cv2 = require("cv2")
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
        capture = _open(url, cv2.CAP_FFMPEG, limits)
        name = without_password(url)
        if capture is None:
            raise SourceError(f"{name} does not open: is the address right, and does the stream run?")
        return cls(capture, name, live=True)

    @classmethod
    def video(cls, path: Path) -> OpenCVSource:
        """A video file; every frame of it is read."""
        capture = _open(str(path))
        if capture is None:
            raise SourceError(f"{path} is no video that OpenCV can read")
        return cls(capture, str(path), live=False)

    def images(self) -> Iterator[tuple[Image, str]]:
        """Each frame; a video ends, a live source that stops giving raises :class:`SourceError`."""
        count = 0
        while True:
            ok, image = self._capture.read()
            if not ok or image is None:
                break
            count += 1
            yield _rgb(image), self.name
        if self.live:
            raise SourceError(f"{self.name} stopped giving pictures after {count}: is it still connected?")
        if not count:
            raise SourceError(f"{self.name} has no frame that OpenCV can read")

    def close(self) -> None:
        """Release the device or file."""
        self._capture.release()


def without_password(url: str) -> str:
    """The address as it may be shown and logged."""
    return re.sub(r"://[^/@]*@", "://", url)


def _open(device: int | str, backend: int = 0, parameters: list[int] | None = None) -> Any | None:
    cv2 = require("cv2")
    with captured_stderr():  # we say in one line why it does not open; OpenCV takes ten
        capture = cv2.VideoCapture(device, backend, parameters or [])
    if capture.isOpened():
        return capture
    capture.release()
    return None


def _rgb(image: Any) -> Image:
    if image.ndim == 2:
        return np.repeat(image[:, :, np.newaxis], 3, axis=2)
    return np.ascontiguousarray(image[:, :, ::-1])
