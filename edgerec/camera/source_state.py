"""Source states and state changes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edgerec.utils.clock import unix_s


class SourceState(StrEnum):
    """A source's state: ``connecting`` → ``live`` ⇄ ``stale`` → ``lost`` → ``connecting``, and finally ``ended``."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"
    LOST = "lost"
    ENDED = "ended"


@dataclass(frozen=True)
class StateChange:
    """A change in a source's state.

    Attributes:
        source: source name as entered by the user, without passwords.
        state: the new state.
        since_s: monotonic time of the change, in seconds.
        reason: reason for the change, or an empty string. For ``live``, the source's image format.
    """

    source: str
    state: SourceState
    since_s: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the state change as a JSON-serializable dictionary, with ``since_s`` as Unix time in seconds."""
        return {"source": self.source, "state": str(self.state), "since_s": unix_s(self.since_s)} | (
            {"reason": self.reason} if self.reason else {}
        )
