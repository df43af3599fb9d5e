"""Which frames are looked at, and what of them."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgerec.camera.frame import Frame
from edgerec.contract.decision import TIME_TOLERANCE_S
from edgerec.contract.preprocess import Image, contiguous
from edgerec.errors import SourceError
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Motion is detected in a small gray image, which is fast and suppresses the noise of the camera.
_SMALL = (64, 48)


@dataclass(frozen=True)
class View:
    """Settings that select the frames to classify, and the region and orientation of each frame.

    Attributes:
        roi: region ``(x, y, width, height)`` in pixels, or as fractions of the frame if all four values are at most 1.
        rotate: clockwise rotation after cropping: 0, 90, 180 or 270 degrees.
        mirror: flip the image horizontally after the rotation.
        every: classify only every n-th frame of a source.
        max_fps: maximum number of frames per second of a source; 0 means no limit. For video files, the rate refers to
            media time. The limit does not apply to the images of a folder.
        max_age_s: skip frames of live sources that are older than this many seconds; 0 skips none.
        motion: skip a frame if at most this fraction of its pixels (0 to 1) has changed since the last classified
            frame; 0 skips none.
    """

    roi: tuple[float, float, float, float] | None = None
    rotate: int = 0
    mirror: bool = False
    every: int = 1
    max_fps: float = 0.0
    max_age_s: float = 0.0
    motion: float = 0.0

    def __post_init__(self) -> None:
        if self.rotate not in (0, 90, 180, 270):
            raise ValueError(f"rotate is {self.rotate}; expected 0, 90, 180 or 270")
        if self.every < 1 or not (self.max_fps >= 0 and self.max_age_s >= 0) or not 0 <= self.motion <= 1:
            raise ValueError("every is 1 or more, max_fps and max_age_s 0 or more, motion 0 to 1")
        if self.roi is not None:
            x, y, width, height = self.roi
            if not all(math.isfinite(n) for n in self.roi) or min(x, y) < 0 or min(width, height) <= 0:
                raise ValueError(f"roi is {self.roi}; expected x,y,width,height")

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """``(left, top, right, bottom)`` of the region in a picture of this size, in pixels; it may lie outside."""
        if self.roi is None:
            return 0, 0, width, height
        scale = (width, height, width, height) if max(self.roi) <= 1 else (1, 1, 1, 1)
        x, y, columns, rows = (round(n * whole) for n, whole in zip(self.roi, scale, strict=True))
        return x, y, x + max(columns, 1), y + max(rows, 1)

    def apply(self, image: Image) -> Image:
        """The part of ``image``, RGB ``(H, W, 3)``, that the model sees; empty where the region lies outside of it."""
        if self.roi is not None:
            left, top, right, bottom = self.box(*image.shape[:2])
            image = image[top:bottom, left:right]
        if self.rotate or self.mirror:
            image = contiguous(image)
        if self.rotate:
            image = np.rot90(image, -self.rotate // 90)
        if self.mirror:
            image = image[:, ::-1]
        return np.ascontiguousarray(image) if self.rotate or self.mirror else image


def parse_roi(text: str) -> tuple[float, float, float, float]:
    """``x,y,width,height`` as typed; raises ValueError."""
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"roi is {text!r}; expected x,y,width,height in pixels, or in parts as 0.25,0,0.5,1") from None
    return x, y, width, height


@dataclass
class FrameSelector:
    """Applies a view to frames as they come, and counts what it leaves out, by reason.

    A region outside of a source's first picture is an error; after a change of resolution it leaves frames out, so that
    a camera goes on when the old one comes back.
    """

    view: View
    skipped: Counter[str] = field(default_factory=Counter)
    _seen: Counter[str] = field(default_factory=Counter)
    _sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    _next_s: dict[str, float] = field(default_factory=dict)
    _before: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def forget(self, feed: str) -> None:
        """Select the next frame of a source even without motion. Called after the source was lost."""
        self._before.pop(feed, None)

    def take(self, frame: Frame) -> Frame | None:
        """The frame as the model sees it, or None where it is left out."""
        reason = self._reason(frame)
        self._check_region(frame)
        if not reason:
            frame = replace(frame, grabbed=self.view.apply(frame.grabbed))
            if frame.grabbed.size and (not self.view.motion or self._moved(frame)):
                return frame
            reason = "motion" if frame.grabbed.size else "roi"
        self.skipped[reason] += 1
        return None

    def _reason(self, frame: Frame) -> str:
        view, feed = self.view, frame.feed
        number = self._seen[feed]
        self._seen[feed] += 1
        if number % view.every:
            return "every"
        of_file = frame.media_s is not None or not frame.stream
        if view.max_age_s and not of_file and time.monotonic() - frame.grabbed_s > view.max_age_s:
            return "age"
        if view.max_fps and frame.stream:
            at_s, period_s = frame.captured_s, 1 / view.max_fps
            due_s = self._next_s.get(feed, at_s)
            if at_s < due_s - TIME_TOLERANCE_S:
                return "rate"
            # Add the period to the due time instead of the frame's time. Otherwise, max_fps=25 would select only every
            # second frame of a source with 30 frames per second.
            self._next_s[feed] = max(due_s + period_s, at_s - period_s)
        return ""

    def _check_region(self, frame: Frame) -> None:
        """Tell once of each size of a source's pictures in which the region is not whole."""
        size, known = frame.grabbed.shape[:2], self._sizes.get(frame.feed)
        if self.view.roi is None or size == known:
            return
        self._sizes[frame.feed] = size
        height, width = size
        left, top, right, bottom = self.view.box(height, width)
        pictures = f"the pictures of {frame.feed}, {width}x{height}"
        if left >= width or top >= height:
            said = f"the region {left},{top},{right - left},{bottom - top} lies outside of {pictures}"
            if known is None:
                raise SourceError(f"{said}: expected x,y,width,height inside of them")
            log.warning("%s: they are left out", said)
        elif right > width or bottom > height:
            seen = f"{left},{top},{min(right, width) - left},{min(bottom, height) - top}"
            log.warning("the region goes over the edge of %s: what is looked at is %s", pictures, seen)

    def _moved(self, frame: Frame) -> bool:
        cv2 = require("cv2")
        small = cv2.cvtColor(cv2.resize(frame.image, _SMALL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        before = self._before.get(frame.feed)
        changed = 1.0 if before is None else float(np.mean(cv2.absdiff(small, before) > 16))
        if changed > self.view.motion:
            self._before[frame.feed] = small
            return True
        return False
