"""Select, crop, rotate and mirror frames before classification."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgerec.camera.frame import Frame, FrameRegion
from edgerec.contract.preprocess import Image, contiguous
from edgerec.contract.smoothing import TIME_TOLERANCE_S
from edgerec.errors import ConfigError, SourceError
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Width and height in pixels of the grayscale images for motion detection.
_SMALL = (64, 48)


@dataclass(frozen=True)
class FrameOptions:
    """Options for selecting, cropping, rotating and mirroring frames before classification.

    Attributes:
        roi: region ``(x, y, width, height)`` in pixels, or as fractions of the frame if all four values are at most 1.
        rotate: clockwise rotation after cropping: 0, 90, 180 or 270 degrees.
        mirror: flip the image horizontally after the rotation.
        every: classify only every n-th frame of each source.
        max_fps: maximum number of frames per second and source. 0 means no limit. For video files, the rate refers to
            the timestamps in the file. The limit does not apply to image folders.
        max_age_s: skip frames of live sources that are older than this many seconds. 0 disables this check.
        motion: skip a frame if at most this fraction of its pixels (0 to 1) has changed since the last classified
            frame. 0 disables this check.
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
            raise ConfigError("FrameOptions.rotate", f"is {self.rotate}; expected 0, 90, 180 or 270")
        if self.every < 1:
            raise ConfigError("FrameOptions.every", f"is {self.every}; expected at least 1")
        for name in ("max_fps", "max_age_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"FrameOptions.{name}", f"is {getattr(self, name)}; expected at least 0")
        if not 0 <= self.motion <= 1:
            raise ConfigError("FrameOptions.motion", f"is {self.motion}; expected 0 to 1")
        if self.roi is not None:
            x, y, width, height = self.roi
            if not all(math.isfinite(n) for n in self.roi) or min(x, y) < 0 or min(width, height) <= 0:
                raise ConfigError("FrameOptions.roi", f"is {self.roi}; expected x,y,width,height")

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the region as ``(left, top, right, bottom)`` in pixels, not clipped to the image."""
        if self.roi is None:
            return 0, 0, width, height
        scale = (width, height, width, height) if max(self.roi) <= 1 else (1, 1, 1, 1)
        x, y, columns, rows = (round(n * factor) for n, factor in zip(self.roi, scale, strict=True))
        return x, y, x + max(columns, 1), y + max(rows, 1)

    def region(self, width: int, height: int) -> tuple[int, int, int, int] | None:
        """Return the region to classify, clipped to the frame.

        Returns:
            ``(left, top, right, bottom)`` in pixels, or None if frames are not cropped, rotated or mirrored.
        """
        if self.roi is None and not self.rotate and not self.mirror:
            return None
        left, top, right, bottom = self.box(height, width)
        return left, top, min(right, width), min(bottom, height)

    def box_in(self, image: Image, full_size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """Return the region as ``(left, top, right, bottom)`` in pixels of a full-size or reduced image.

        Args:
            image: uint8 ``(H, W, 3)``.
            full_size: width and height of the source's image, or None if ``image`` was not reduced.
        """
        height, width = image.shape[:2]
        if full_size is None:
            return self.box(height, width)
        left, top, right, bottom = self.box(full_size[1], full_size[0])
        left, right = (x * width // full_size[0] for x in (left, right))
        top, bottom = (y * height // full_size[1] for y in (top, bottom))
        return left, top, right, bottom

    def apply(self, image: Image, full_size: tuple[int, int] | None = None) -> Image:
        """Crop, rotate and mirror an RGB image. Return an empty array if the region is outside the image.

        Args:
            image: uint8 RGB of shape ``(H, W, 3)``.
            full_size: width and height of the source's image, or None if ``image`` was not reduced.
        """
        if self.roi is not None:
            left, top, right, bottom = self.box_in(image, full_size)
            image = image[top:bottom, left:right]
        if self.rotate or self.mirror:
            image = contiguous(image)
        if self.rotate:
            image = np.rot90(image, -self.rotate // 90)
        if self.mirror:
            image = image[:, ::-1]
        return np.ascontiguousarray(image) if self.rotate or self.mirror else image


def parse_roi(text: str) -> tuple[float, float, float, float]:
    """Parse a region in the format ``x,y,width,height``.

    Raises:
        ConfigError: the text does not consist of four numbers.
    """
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(
            "FrameOptions.roi",
            f"is {text!r}; expected x,y,width,height in pixels, or as fractions of the frame, e.g. 0.25,0,0.5,1",
        ) from None
    return x, y, width, height


@dataclass
class FrameSelector:
    """Selects, crops, rotates and mirrors frames, and counts the skipped frames by reason.

    A region outside a source's first frame is an error. After a change of resolution, frames that do not contain the
    region are skipped.

    Attributes:
        options: options for all frames. The region, the rotation and the mirroring apply to sources without named
            regions.
        regions: names and options of the named regions, keyed by source. The rate limits in these options are not used,
            because all regions of a frame are classified together.
        skipped: number of skipped frames, keyed by reason. Regions are counted separately for ``motion`` and ``roi``.
    """

    options: FrameOptions
    regions: Mapping[str, Sequence[tuple[str, FrameOptions]]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    _frame_counts: Counter[str] = field(default_factory=Counter)
    _sizes: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    _due_s: dict[str, float] = field(default_factory=dict)
    _references: dict[tuple[str, str], npt.NDArray[np.uint8]] = field(default_factory=dict)

    def forget(self, source: str) -> None:
        """Reset motion detection for a lost source."""
        for key in [key for key in self._references if key[0] == source]:
            del self._references[key]

    def select(self, frame: Frame) -> list[Frame]:
        """Return the images to classify: one for each named region of the source, or one for the whole frame.

        Images without motion and regions outside the frame are skipped.

        Returns:
            Cropped, rotated and mirrored frames. The list is empty if the frame is skipped.
        """
        reason = self._reason(frame)
        parts = self.regions.get(frame.source) or (("", self.options),)
        for name, options in parts:
            self._check_region(frame, name, options)
        if reason:
            self.skipped[reason] += 1
            return []
        selected = [part for name, options in parts if (part := self._select_part(frame, name, options)) is not None]
        # The last region of a frame is only known here, because motion detection may skip regions.
        for index, part in enumerate(selected[:-1]):
            if part.region is not None:
                selected[index] = replace(part, region=replace(part.region, is_last=False))
        return selected

    def _select_part(self, frame: Frame, name: str, options: FrameOptions) -> Frame | None:
        image = options.apply(frame.grabbed, frame.full_size)
        if not image.size:
            self.skipped["roi"] += 1
            return None
        part = frame if image is frame.grabbed else replace(frame, grabbed=image)
        if options.motion and not self._has_motion(part, name, options.motion):
            self.skipped["motion"] += 1
            return None
        if name:
            height, width = frame.grabbed.shape[:2]
            left, top, right, bottom = options.box_in(frame.grabbed, frame.full_size)
            region = FrameRegion(name, (left, top, min(right, width), min(bottom, height)), frame.grabbed)
            # Motion detection has already created a contiguous copy of the image.
            part = replace(part, grabbed=part.image if options.motion else part.grabbed, region=region)
        return part

    def _reason(self, frame: Frame) -> str:
        options, source = self.options, frame.source
        number = self._frame_counts[source]
        self._frame_counts[source] += 1
        if number % options.every:
            return "every"
        from_file = frame.media_s is not None or not frame.stream
        if options.max_age_s and not from_file and time.monotonic() - frame.grabbed_s > options.max_age_s:
            return "age"
        if options.max_fps and frame.stream:
            at_s, period_s = frame.captured_s, 1 / options.max_fps
            due_s = self._due_s.get(source, at_s)
            if at_s < due_s - TIME_TOLERANCE_S:
                return "rate"
            # Add the period to the due time instead of the current time to keep the average rate at max_fps.
            self._due_s[source] = max(due_s + period_s, at_s - period_s)
        return ""

    def _check_region(self, frame: Frame, name: str, options: FrameOptions) -> None:
        """Log a warning if the region extends beyond the frame after a change of the frame size.

        Raises:
            SourceError: the region is outside the source's first frame.
        """
        size = frame.full_size[::-1] if frame.full_size else frame.grabbed.shape[:2]
        last_size = self._sizes.get((frame.source, name))
        if options.roi is None or size == last_size:
            return
        self._sizes[frame.source, name] = size
        height, width = size
        left, top, right, bottom = options.box(height, width)
        frames, subject = f"the frames of {frame.source}, {width}x{height}", f"region {name}" if name else "region"
        if left >= width or top >= height:
            problem = f"the {subject} {left},{top},{right - left},{bottom - top} is outside {frames}"
            if last_size is None:
                raise SourceError(f"{problem}: choose a region inside the frame")
            log.warning("%s: these frames are skipped", problem)
        elif right > width or bottom > height:
            cropped = f"{left},{top},{min(right, width) - left},{min(bottom, height) - top}"
            log.warning("the %s extends beyond %s: only %s is classified", subject, frames, cropped)

    def _has_motion(self, frame: Frame, name: str, least: float) -> bool:
        cv2 = require("cv2")
        small = cv2.cvtColor(cv2.resize(frame.image, _SMALL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        reference = self._references.get((frame.source, name))
        changed = 1.0 if reference is None else float(np.mean(cv2.absdiff(small, reference) > 16))
        if changed > least:
            self._references[frame.source, name] = small
            return True
        return False
