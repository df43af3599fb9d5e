"""Pictures without a camera: for trying things out, and for tests that run long."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from edgerec.camera.sources.base import NOMINAL_FPS, CaptureFormat
from edgerec.contract.preprocess import Image


class SyntheticSource:
    """An endless test video: a color gradient that moves to the left by one pixel per frame.

    If ``fps`` is 0, the next image is delivered as soon as the previous one was consumed.

    Attributes:
        position_s: media time of the current image, in seconds.
    """

    def __init__(self, width: int, height: int, fps: float) -> None:
        self.name = f"synthetic:{width}x{height}@{fps:g}"
        self.format = CaptureFormat(width, height, fps)
        self.position_s = 0.0
        across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
        picture = np.empty((height, width, 3), np.uint8)
        picture[..., 0], picture[..., 1], picture[..., 2] = across, down[:, np.newaxis], 255 - across
        self._twice = np.concatenate([picture, picture], axis=1)

    def images(self) -> Iterator[tuple[Image, str]]:
        """Each frame at its time; times that were missed are left out, as a camera does."""
        width, fps = self.format.width, self.format.fps
        began, number = time.monotonic(), 0
        while True:
            at = number % width
            self.position_s = number / (fps or NOMINAL_FPS)
            yield np.ascontiguousarray(self._twice[:, at : at + width]), self.name
            number += 1
            if fps:
                now = time.monotonic() - began
                number = max(number, int(now * fps))
                time.sleep(max(0.0, number / fps - now))

    def close(self) -> None:
        """Nothing is held open."""
