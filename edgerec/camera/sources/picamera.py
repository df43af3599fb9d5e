"""A source that reads a Raspberry Pi camera module (CSI) with picamera2 and libcamera."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgerec.camera.sources.base import CaptureFormat
from edgerec.contract.preprocess import Image
from edgerec.errors import SourceError

# Maximum plausible age of a sensor timestamp in seconds. Older timestamps come from a different clock.
MAX_AGE_S = 10.0


class PicameraSource:
    """A source that reads a camera with picamera2, which comes with Raspberry Pi OS and is not installed by pip.

    Attributes:
        captured_s: monotonic time in seconds at which the exposure of the last image started.
    """

    def __init__(self, number: int, requested: CaptureFormat) -> None:
        """Open and start the camera with index ``number`` in picamera2's camera list.

        Raises:
            SourceError: picamera2 cannot be imported, or the camera does not exist or cannot be opened.
        """
        self.name = f"picamera2:{number}"
        self.captured_s = 0.0
        picamera2 = _load(self.name)
        cameras = picamera2.global_camera_info()
        if number >= len(cameras):
            listed = ", ".join(f"{i} ({info.get('Model', '?')})" for i, info in enumerate(cameras)) or "no camera"
            raise SourceError(f"camera {self.name} was not found (libcamera found {listed}): check the ribbon cable")
        size = (requested.width or 1280, requested.height or 720)
        controls = {"FrameRate": requested.fps} if requested.fps else {}
        self._camera: Any = None
        try:
            self._camera = picamera2(number)
            # libcamera lists channels in reverse memory order, so BGR888 yields an RGB array.
            self._camera.configure(
                self._camera.create_video_configuration(main={"size": size, "format": "BGR888"}, controls=controls)
            )
            self._camera.start()
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            if self._camera is not None:
                self._camera.close()  # A camera that is not closed stays in use.
            raise SourceError(
                f"{self.name} cannot be opened ({error}): check that no other program is using it"
            ) from None
        width, height = self._camera.camera_configuration()["main"]["size"]
        self.format = CaptureFormat(width, height, requested.fps, "RGB3")

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield the frames of the camera.

        Raises:
            SourceError: the camera has stopped.
        """
        while True:
            try:
                request = self._camera.capture_request()
                try:
                    image, metadata = request.make_array("main"), request.get_metadata()
                finally:
                    request.release()
            except (RuntimeError, OSError) as error:
                raise SourceError(f"{self.name} stopped delivering images ({error}): check the ribbon cable") from None
            self.captured_s = _monotonic_s(metadata.get("SensorTimestamp"))
            yield np.ascontiguousarray(image[..., :3]), self.name

    def close(self) -> None:
        """Stop and release the camera."""
        try:
            self._camera.stop()
        finally:
            self._camera.close()


def camera_modules(name: str) -> list[int]:
    """Return the indices of camera modules in picamera2's list, which also contains USB cameras.

    Raises:
        SourceError: picamera2 cannot be imported. The message names the source ``name``.
    """
    return [n for n, info in enumerate(_load(name).global_camera_info()) if "/usb" not in str(info.get("Id", ""))]


def _load(name: str) -> Any:
    try:
        from picamera2 import Picamera2
    except Exception as error:  # picamera2 imports many packages, which may be incompatible.
        if "size changed" in str(error):
            fix = "run pip install --upgrade --force-reinstall simplejpeg"
        else:
            fix = "run sudo apt install python3-picamera2, and create the environment with python3 -m venv "
            fix += "--system-site-packages"
        raise SourceError(f"{name} needs picamera2, which cannot be imported ({error}): {fix}") from None
    return Picamera2


def _monotonic_s(timestamp_ns: int | None) -> float:
    """Convert libcamera's SensorTimestamp to seconds on the monotonic clock.

    According to libcamera's documentation, the timestamp refers to the boot clock, but drivers use the monotonic clock.
    The two clocks differ only if the machine was suspended. Therefore the clock that gives a plausible age is used.
    """
    now_s = time.monotonic()
    if not timestamp_ns:
        return now_s
    clocks = [now_s, time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))]
    ages = [clock - timestamp_ns / 1e9 for clock in clocks]
    return now_s - min((age for age in ages if 0 <= age <= MAX_AGE_S), default=0.0)
