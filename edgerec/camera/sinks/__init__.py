"""Where results go."""

from __future__ import annotations

from typing import Protocol

from edgerec.camera.frame import Result


class Sink(Protocol):
    """Takes each result."""

    @property
    def closed(self) -> bool:
        """Whether the person at the sink wants to end."""
        ...

    def write(self, result: Result) -> None:
        """Take one result."""
        ...
