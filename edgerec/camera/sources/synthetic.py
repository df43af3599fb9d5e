"""Synthetic frames for trying edgerec without a camera and for endurance tests."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from edgerec.camera.sources.base import NOMINAL_FPS, CaptureFormat
from edgerec.contract.preprocess import Image


class SyntheticSource:
    """An endless test video: a color gradient that moves left by one pixel per frame.

    If ``fps`` is 0, the next image is delivered as soon as the previous one was consumed.

    Attributes:
        position_s: timestamp of the current image in the video, in seconds.
    """

    def __init__(self, width: int, height: int, fps: float) -> None:
        self.name = f"synthetic:{width}x{height}@{fps:g}"
        self.format = CaptureFormat(width, height, fps)
        self.position_s = 0.0
        horizontal, vertical = np.linspace(0, 255, width), np.linspace(0, 255, height)
        image = np.empty((height, width, 3), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = horizontal, vertical[:, np.newaxis], 255 - horizontal
        self._two_copies = np.concatenate([image, image], axis=1)

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield each frame when it is due. As with a camera, frames are skipped if the consumer is too slow."""
        width, fps = self.format.width, self.format.fps
        start_s, number = time.monotonic(), 0
        while True:
            left = number % width
            self.position_s = number / (fps or NOMINAL_FPS)
            yield np.ascontiguousarray(self._two_copies[:, left : left + width]), self.name
            number += 1
            if fps:
                elapsed_s = time.monotonic() - start_s
                number = max(number, int(elapsed_s * fps))
                time.sleep(max(0.0, number / fps - elapsed_s))

    def close(self) -> None:
        """Do nothing, because there are no resources to release."""
