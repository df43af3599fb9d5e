"""Print results as lines of text or JSON."""

from __future__ import annotations

import os
from typing import TextIO

from edgerec.camera.frame import Result
from edgerec.camera.source_state import State, StateChange
from edgerec.utils.text import printable, to_json


class _Lines:
    """Writes and flushes lines. If ``out`` is a pipe and its reader closes it, the sink asks the camera to stop."""

    uses_images = False

    def __init__(self, out: TextIO) -> None:
        self.closed = False
        self._out = out

    def _line(self, text: str) -> None:
        try:
            print(printable(text), file=self._out, flush=True)
        except BrokenPipeError:  # as with: edgerec camera … | head
            self.closed = True
            # What its buffer still holds is written when Python ends, and would fail again: it goes nowhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._out.fileno())
            os.close(nowhere)

    def close(self) -> None:
        """Leave the stream open, because the caller owns it."""


class JsonLines(_Lines):
    """Writes one JSON object for each frame and each state change."""

    def write(self, result: Result) -> None:
        """Write one line."""
        self._line(to_json({"event": "result"} | result.to_dict()))

    def state(self, change: StateChange) -> None:
        """Write one line."""
        self._line(to_json({"event": "state"} | change.to_dict()))


class TextLines(_Lines):
    """Writes one short line for each frame, with the label of this frame before any smoothing."""

    def __init__(self, out: TextIO, *, named: bool = False) -> None:
        """Write to ``out``. If ``named``, each line begins with the name of the source."""
        super().__init__(out)
        self._named = named

    def write(self, result: Result) -> None:
        """Write one line."""
        answer, where = result.classification, f"{result.frame.feed}  " if self._named else ""
        novelty = "" if answer.novelty is None else f"  novelty {answer.novelty:.2f}"
        said = f"{answer.label}  {answer.score:.2f}{novelty}"
        self._line(f"{where}frame {result.frame.index}  {said}  {result.age_ms:.1f} ms")

    def state(self, change: StateChange) -> None:
        """State changes are written by :class:`StateLines`."""


class StateLines(_Lines):
    """Writes one line when a live source connects, becomes stale or is lost."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._said: dict[str, str] = {}

    def write(self, result: Result) -> None:
        """Results are written by the other classes."""

    def state(self, change: StateChange) -> None:
        """Write the new state and its reason, unless the source is a file or the last line of the source was equal."""
        if not change.reason or change.state not in (State.LIVE, State.STALE, State.LOST):
            return
        text = f"{change.source}: {change.state}: {change.reason.removeprefix(f'{change.source} ')}"
        if text != self._said.get(change.source):
            self._line(text)
        self._said[change.source] = text
