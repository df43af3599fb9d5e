"""Print results and state changes as text or JSON lines."""

from __future__ import annotations

import os
from typing import TextIO

from edgerec.camera.frame import Result
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.utils.text import printable, to_json


class _Lines:
    """Writes lines to a stream, and stops the camera if the stream's reader has exited."""

    uses_images = False

    def __init__(self, out: TextIO) -> None:
        self.closed = False
        self._out = out

    def _write_line(self, text: str) -> None:
        try:
            print(printable(text), file=self._out, flush=True)
        except BrokenPipeError:  # e.g. edgerec camera … | head
            self.closed = True
            # Redirect the stream to /dev/null, because flushing the broken pipe at exit would fail.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._out.fileno())
            os.close(null)

    def close(self) -> None:
        """Do nothing, because the caller owns the stream."""


class JsonLines(_Lines):
    """Writes one line with a JSON object for each frame and state change."""

    def write(self, result: Result) -> None:
        """Write the result."""
        self._write_line(to_json({"event": "result"} | result.to_dict()))

    def state(self, change: StateChange) -> None:
        """Write the state change."""
        self._write_line(to_json({"event": "state"} | change.to_dict()))


class TextLines(_Lines):
    """Writes one line of text per frame, with the prediction before smoothing."""

    def __init__(self, out: TextIO, *, named: bool = False) -> None:
        """Create the sink. If ``named`` is True, each line starts with the name of the source or region."""
        super().__init__(out)
        self._named = named

    def write(self, result: Result) -> None:
        """Write the result."""
        prediction, source = result.classification, f"{result.frame.display_name}  " if self._named else ""
        novelty = "" if prediction.novelty is None else f"  novelty {prediction.novelty:.2f}"
        label = f"{prediction.label}  {prediction.score:.2f}{novelty}"
        self._write_line(f"{source}frame {result.frame.index}  {label}  {result.age_ms:.1f} ms")

    def state(self, change: StateChange) -> None:
        """Do nothing, because state changes are written by :class:`StateLines`."""


class StateLines(_Lines):
    """Writes a line whenever a live source connects, becomes stale or is lost."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._last_lines: dict[str, str] = {}

    def write(self, result: Result) -> None:
        """Do nothing, because this sink writes only state changes."""

    def state(self, change: StateChange) -> None:
        """Write the new state and its reason. Changes without a reason and repeated lines are skipped."""
        if not change.reason or change.state not in (SourceState.LIVE, SourceState.STALE, SourceState.LOST):
            return
        text = f"{change.source}: {change.state}: {change.reason.removeprefix(f'{change.source} ')}"
        if text != self._last_lines.get(change.source):
            self._write_line(text)
        self._last_lines[change.source] = text
