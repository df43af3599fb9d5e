"""Sinks: receivers of results, such as a CSV file, a video or a broker."""

from __future__ import annotations

from typing import Protocol

from edgerec.camera.frame import Result
from edgerec.camera.source_state import StateChange


class Sink(Protocol):
    """A receiver of results and of state changes of the sources. All calls come from the same thread.

    Optional attributes: ``name`` for messages; ``uses_images``, False if ``write`` does not use the image of a result,
    so that waiting results do not keep it in memory; ``dropped``, the number of accepted results that the sink has
    lost; ``inline``, True if the sink must be called in the thread of :meth:`Camera.run`; ``outputs``, the paths that
    the sink writes.
    """

    @property
    def closed(self) -> bool:
        """Whether the sink asks the camera to stop."""
        ...

    def write(self, result: Result) -> None:
        """Process one result."""
        ...

    def state(self, change: StateChange) -> None:
        """Process one state change."""
        ...

    def close(self) -> None:
        """Finish all output and release all resources. Called exactly once."""
        ...
