"""A frame carries its time; a result carries its frame's."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from edgerec.contract.decision import Classification
from edgerec.contract.preprocess import Image


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: uint8 ``(H, W, 3)`` RGB.
        index: counts what the source gave, from 0; a gap means that newer frames overtook it.
        grabbed_s: monotonic time of the grab, seconds.
        source: where it comes from, as the user named it; for a folder, the picture's path.
        feed: which of the camera's sources it comes from.
    """

    image: Image
    index: int
    grabbed_s: float
    source: str
    feed: str = ""


@dataclass(frozen=True)
class Result:
    """The answer for one frame. ``answered_s`` is the monotonic time at which it was there, seconds."""

    frame: Frame
    classification: Classification
    answered_s: float

    @property
    def age_ms(self) -> float:
        """How old the picture was when its answer was there."""
        return (self.answered_s - self.frame.grabbed_s) * 1000

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints. ``captured_s`` is Unix time."""
        answer = self.classification
        return {
            "event": "result",
            "frame": self.frame.index,
            "source": self.frame.source,
            "captured_s": round(time.time() - (time.monotonic() - self.frame.grabbed_s), 6),
            "age_ms": round(self.age_ms, 3),
            "label": answer.label,
            "index": answer.index,
            "score": answer.score,
            "categories": [asdict(category) for category in answer.categories],
        }
