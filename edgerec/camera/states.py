"""What a source is doing, and since when."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """``connecting`` → ``live`` ⇄ ``stale`` → ``lost`` → ``connecting`` …, and ``ended`` once and for all."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"
    LOST = "lost"
    ENDED = "ended"


@dataclass(frozen=True)
class StateChange:
    """A source's new state.

    Attributes:
        source: the source as the user named it, without a password.
        state: the new one.
        since_s: monotonic time of the change, seconds.
        reason: why, where there is something to say.
    """

    source: str
    state: State
    since_s: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints. ``since_s`` is Unix time."""
        since = round(time.time() - (time.monotonic() - self.since_s), 6)
        return {"source": self.source, "state": str(self.state), "since_s": since} | (
            {"reason": self.reason} if self.reason else {}
        )


@dataclass(frozen=True)
class Patience:
    """How long a live source may be silent, and how it is tried again.

    Attributes:
        open_s: from connecting to the first picture, before the attempt counts as hung and is replaced.
        stale_s: without a picture, before a live source is called stale.
        lost_s: without a picture, before the connection is given up and made anew.
        first_wait_s, longest_wait_s: pause before the next attempt; it doubles from the one to the other.
        give_up_s: without a picture, before the source ends with an error; None never gives up.
    """

    open_s: float = 15.0
    stale_s: float = 2.0
    lost_s: float = 10.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 2.0
    give_up_s: float | None = None

    def __post_init__(self) -> None:
        limits = (self.open_s, self.stale_s, self.lost_s, self.first_wait_s, self.longest_wait_s)
        if not all(seconds > 0 for seconds in limits) or (self.give_up_s is not None and self.give_up_s < 0):
            raise ValueError("seconds of patience are positive")
        if self.stale_s > self.lost_s:
            raise ValueError(f"a source is stale ({self.stale_s:g} s) before it is lost ({self.lost_s:g} s)")
