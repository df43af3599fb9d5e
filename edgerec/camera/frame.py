"""Frames and their classification results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edgerec.contract.decision import Classification, Decision
from edgerec.contract.preprocess import Image, contiguous
from edgerec.utils.clock import unix_s

_NO_IMAGE: Image = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class FrameRegion:
    """A named region of a source's frame.

    Attributes:
        name: name of the region.
        box: the region as ``(left, top, right, bottom)`` in pixels of ``whole``.
        whole: the source's frame, uint8 RGB of shape ``(H, W, 3)``, neither rotated nor mirrored. Must not be changed.
        is_last: whether no further region of the same frame will be classified.
    """

    name: str
    box: tuple[int, int, int, int]
    whole: Image
    is_last: bool = True


@dataclass(frozen=True)
class Frame:
    """An image from a source, with its capture time.

    Attributes:
        grabbed: uint8 RGB image of shape ``(H, W, 3)``. May be a view of OpenCV's BGR image, and must not be changed.
        index: frame number, counted from 0 for each source. A gap means that frames were dropped.
        grabbed_s: monotonic time in seconds at which the image was exposed or, if this time is unknown, received.
        origin: path of the image for a folder, otherwise the source name as entered by the user.
        source: unique name of the source, which is also used in state changes.
        media_s: position in a video file, in seconds from its start, or None for other sources.
        started_s: monotonic time at which the source delivered its first frame, in seconds.
        stream: True if the frame is part of a continuous video, False for images from a folder.
        region: the region that the image shows, or None if the image shows the whole frame.
        full_size: width and height of the source's image if it was decoded at a reduced size, otherwise None.
    """

    grabbed: Image
    index: int
    grabbed_s: float
    origin: str
    source: str = ""
    media_s: float | None = None
    started_s: float = 0.0
    stream: bool = True
    full_size: tuple[int, int] | None = None
    region: FrameRegion | None = None

    @property
    def display_name(self) -> str:
        """Name of the source and, for a named region, the region's name, e.g. ``camera/door``."""
        source = self.source or self.origin
        return source if self.region is None else region_name(source, self.region.name)

    @cached_property
    def image(self) -> Image:
        """The image as a C-contiguous uint8 RGB array of shape ``(H, W, 3)``, computed on first use."""
        return contiguous(self.grabbed)

    @property
    def captured_s(self) -> float:
        """Capture time in seconds on the monotonic clock.

        For video files, the capture time is calculated from the timestamps in the file.
        """
        return self.grabbed_s if self.media_s is None else self.started_s + self.media_s

    @property
    def buffers(self) -> dict[int, int]:
        """Sizes in bytes of the memory buffers that the frame uses, keyed by the buffers' IDs.

        The regions of a frame share a buffer. If the image is not contiguous, one of the buffers is its contiguous
        copy.
        """
        decoded = _decoded(self.grabbed)
        sizes = {id(decoded): decoded.nbytes}
        if not self.grabbed.flags.c_contiguous:
            sizes[id(self)] = self.grabbed.nbytes
        if self.region is not None:
            whole = _decoded(self.region.whole)
            sizes[id(whole)] = whole.nbytes
        return sizes

    @property
    def size_bytes(self) -> int:
        """Memory use of the frame in bytes, including a contiguous copy of the image if necessary."""
        return sum(self.buffers.values())


def region_name(source: str, region: str) -> str:
    """Return the display name of a region, e.g. ``camera/door``."""
    return f"{source}/{region}"


def _decoded(image: Image) -> Image:
    return image.base if isinstance(image.base, np.ndarray) else image


@dataclass(frozen=True)
class Result:
    """The prediction for a single frame.

    Attributes:
        frame: the classified frame.
        classification: the prediction for this frame, without smoothing.
        completed_s: monotonic time in seconds at which the prediction was complete.
        decision: the prediction smoothed over the frames of the source or region, or None for a single image.
    """

    frame: Frame
    classification: Classification
    completed_s: float
    decision: Decision | None = None

    @cached_property
    def without_image(self) -> Result:
        """Copy of this result with an empty image, for sinks that do not use images."""
        region = self.frame.region and replace(self.frame.region, whole=_NO_IMAGE)
        return replace(self, frame=replace(self.frame, grabbed=_NO_IMAGE, region=region))

    @property
    def age_ms(self) -> float:
        """Latency from capture to prediction in milliseconds."""
        return (self.completed_s - self.frame.grabbed_s) * 1000

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON-serializable dictionary. The field ``captured_s`` is a Unix time in seconds."""
        decision, decision_fields = self.decision, {}
        if decision is not None:
            decision_fields = {"decision": asdict(decision) | {"since_s": unix_s(decision.since_s)}}
        return {
            "frame": self.frame.index,
            "source": self.frame.origin,
            **({} if self.frame.region is None else {"region": self.frame.region.name}),
            "captured_s": unix_s(self.frame.captured_s),
            "age_ms": round(self.age_ms, 3),
            **self.classification.to_dict(),
            **decision_fields,
        }
