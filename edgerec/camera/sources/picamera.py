"""The Raspberry Pi's own cameras, through libcamera."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgerec.camera.sources import CaptureFormat
from edgerec.contract.preprocess import Image
from edgerec.errors import SourceError


class PicameraSource:
    """A ``picamera2.Picamera2``. It comes with Raspberry Pi OS, not from PyPI."""

    def __init__(self, number: int, wanted: CaptureFormat) -> None:
        """Open and start the camera with that number; raises :class:`SourceError` when it does not."""
        self.name = f"picamera2:{number}"
        try:
            from picamera2 import Picamera2
        except ImportError as error:
            raise SourceError(
                f"{self.name} needs picamera2, which does not load ({error}): sudo apt install python3-picamera2, and "
                "make the environment with python3 -m venv --system-site-packages"
            ) from None
        found = Picamera2.global_camera_info()
        if number >= len(found):
            there = ", ".join(f"{i} ({info.get('Model', '?')})" for i, info in enumerate(found)) or "none"
            raise SourceError(f"{self.name} is not there: libcamera sees {there}; is the ribbon cable plugged in?")
        size = (wanted.width or 1280, wanted.height or 720)
        controls = {"FrameRate": wanted.fps} if wanted.fps else {}
        try:
            self._camera: Any = Picamera2(number)
            # libcamera names formats by their order in memory from the last byte: BGR888 is RGB in an array.
            self._camera.configure(
                self._camera.create_video_configuration(main={"size": size, "format": "BGR888"}, controls=controls)
            )
            self._camera.start()
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            raise SourceError(f"{self.name} does not open ({error}): is another program using it?") from None
        width, height = self._camera.camera_configuration()["main"]["size"]
        self.format = CaptureFormat(width, height, wanted.fps, "RGB3")

    def images(self) -> Iterator[tuple[Image, str]]:
        """Each frame; raises :class:`SourceError` when the camera stops."""
        while True:
            try:
                image = self._camera.capture_array("main")
            except (RuntimeError, OSError) as error:
                raise SourceError(f"{self.name} stopped giving pictures ({error})") from None
            yield np.ascontiguousarray(image[..., :3]), self.name

    def close(self) -> None:
        """Stop and release the camera."""
        self._camera.stop()
        self._camera.close()
