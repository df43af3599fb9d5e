"""A frame carries its time; a result carries its frame's."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from edgerec.contract.decision import Classification, Decision
from edgerec.contract.preprocess import Image, contiguous


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        grabbed: uint8 ``(H, W, 3)`` RGB, perhaps a view of the BGR that OpenCV decoded: to look at, not to draw on.
        index: counts what the source gave, from 0; a gap means that newer frames overtook it.
        grabbed_s: monotonic time of the grab, seconds.
        source: where it comes from, as the user named it; for a folder, the picture's path.
        feed: which of the camera's sources it comes from.
    """

    grabbed: Image
    index: int
    grabbed_s: float
    source: str
    feed: str = ""

    @cached_property
    def image(self) -> Image:
        """uint8 ``(H, W, 3)`` RGB, C-contiguous; made when it is asked for."""
        return contiguous(self.grabbed)


@dataclass(frozen=True)
class Result:
    """The answer for one frame.

    Attributes:
        frame: the picture, as the model saw it.
        classification: the answer for this picture alone.
        answered_s: monotonic time at which it was there, seconds.
        decision: what the stream of pictures shows; None for a single picture.
    """

    frame: Frame
    classification: Classification
    answered_s: float
    decision: Decision | None = None

    @property
    def age_ms(self) -> float:
        """How old the picture was when its answer was there."""
        return (self.answered_s - self.frame.grabbed_s) * 1000

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints. ``captured_s`` is Unix time."""
        answer = self.classification
        decision, said = self.decision, {}
        if decision is not None:
            said = {"decision": asdict(decision) | {"since_s": self._unix(decision.since_s)}}
        return {
            "frame": self.frame.index,
            "source": self.frame.source,
            "captured_s": self._unix(self.frame.grabbed_s),
            "age_ms": round(self.age_ms, 3),
            "label": answer.label,
            "index": answer.index,
            "score": answer.score,
            "categories": [asdict(category) for category in answer.categories],
            **({} if answer.novelty is None else {"novelty": round(answer.novelty, 4)}),
            **said,
        }

    @staticmethod
    def _unix(monotonic_s: float) -> float:
        return round(time.time() - (time.monotonic() - monotonic_s), 6)
