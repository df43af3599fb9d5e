"""Results as lines, for people or for scripts."""

from __future__ import annotations

import json
from typing import TextIO

from edgerec.camera.frame import Result


class JsonLines:
    """One JSON object per frame, sent at once."""

    closed = False

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, result: Result) -> None:
        """Write one line."""
        print(json.dumps(result.to_dict(), ensure_ascii=False), file=self._out, flush=True)


class TextLines:
    """One short line per frame."""

    closed = False

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, result: Result) -> None:
        """Write one line."""
        answer = result.classification
        print(
            f"frame {result.frame.index}  {answer.label}  {answer.score:.2f}  {result.age_ms:.1f} ms",
            file=self._out,
            flush=True,
        )
