"""Results as lines, for people or for scripts."""

from __future__ import annotations

import os
from typing import TextIO

from edgerec.camera.frame import Result
from edgerec.camera.states import State, StateChange
from edgerec.utils.text import printable, to_json


class _Lines:
    """Writes lines and sends each at once; a reader that went away closes the sink."""

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
        """The stream belongs to who gave it."""


class JsonLines(_Lines):
    """One JSON object for each frame and each change of state."""

    def write(self, result: Result) -> None:
        """Write one line."""
        self._line(to_json({"event": "result"} | result.to_dict()))

    def state(self, change: StateChange) -> None:
        """Write one line."""
        self._line(to_json({"event": "state"} | change.to_dict()))


class TextLines(_Lines):
    """One short line for each frame, with its own label, before any smoothing."""

    def __init__(self, out: TextIO, *, named: bool = False) -> None:
        """Write to ``out``; ``named`` begins each line with its source."""
        super().__init__(out)
        self._named = named

    def write(self, result: Result) -> None:
        """Write one line."""
        answer, where = result.classification, f"{result.frame.feed}  " if self._named else ""
        novelty = "" if answer.novelty is None else f"  novelty {answer.novelty:.2f}"
        said = f"{answer.label}  {answer.score:.2f}{novelty}"
        self._line(f"{where}frame {result.frame.index}  {said}  {result.age_ms:.1f} ms")

    def state(self, change: StateChange) -> None:
        """States are no results: :class:`StateLines` writes them."""


class StateLines(_Lines):
    """One line for each change of a state that a person should know of."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._said: dict[str, str] = {}

    def write(self, result: Result) -> None:
        """Results are no states."""

    def state(self, change: StateChange) -> None:
        """Write one line, once for attempts that fail alike; that a file is open, or at its end, goes without."""
        if not change.reason or change.state not in (State.LIVE, State.STALE, State.LOST):
            return
        text = f"{change.source}: {change.state}: {change.reason.removeprefix(f'{change.source} ')}"
        if text != self._said.get(change.source):
            self._line(text)
        self._said[change.source] = text
