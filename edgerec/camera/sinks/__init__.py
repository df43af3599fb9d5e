"""Where results go."""

from __future__ import annotations

from typing import Protocol

from edgerec.camera.frame import Result
from edgerec.camera.states import StateChange


class Sink(Protocol):
    """Takes each result and each change of a source's state; always called from one and the same thread."""

    @property
    def closed(self) -> bool:
        """Whether the person at the sink wants to end."""
        ...

    def write(self, result: Result) -> None:
        """Take one result."""
        ...

    def state(self, change: StateChange) -> None:
        """Take one change of state."""
        ...

    def close(self) -> None:
        """Finish what was begun; called once."""
        ...
