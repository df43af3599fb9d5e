"""Sinks receive a camera's results, e.g. to write a CSV file or to publish them to an MQTT broker."""

from __future__ import annotations

from typing import Protocol

from edgerec.camera.frame import Result
from edgerec.camera.source_state import StateChange


class Sink(Protocol):
    """Protocol for sinks, which receive results and state changes. All methods are called from the same thread.

    A sink may have these optional attributes:

    - ``name`` is the sink's name in messages.
    - ``uses_images`` is False if ``write`` does not use result images. Queued results then have no image, which
      saves memory.
    - ``dropped`` is the number of items lost by the sink, e.g. messages to a server. By default, an item is a result.
    - ``loss`` contains the noun for an item in ``dropped`` and what has happened to it, e.g. ``("command", "failed")``.
    - ``inline`` is True if the sink must be called in the thread of :meth:`Camera.run`.
    - ``outputs`` contains the paths written by the sink.
    - ``abandon()`` aborts a ``close`` that does not return in time. This method is called from another thread and must
      return quickly.
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
        """Finish the output and release all resources. Called exactly once."""
        ...
