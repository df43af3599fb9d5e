"""Questions whose answer may be a crash or a silence: they are asked in a process of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# From a slow card, the first import of OpenCV takes a while.
LIMIT_S = 60.0
HANGS = "it hangs"


@dataclass(frozen=True)
class Answer:
    """What a child said.

    Attributes:
        said: the JSON value that it printed last; None when it failed.
        reason: why it failed; empty when it did not.
    """

    said: Any = None
    reason: str = ""


def ask(code: str, *arguments: str, limit_s: float = LIMIT_S) -> Answer:
    """Run Python code that prints one JSON value at its end. Modules are not taken from the current folder."""
    code_and_output = run([sys.executable, "-P", "-c", code, *arguments], limit_s)
    if code_and_output.reason:
        return code_and_output
    try:
        return Answer(json.loads(code_and_output.said.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return Answer(reason="it says nothing")


def run(command: Sequence[str], limit_s: float = LIMIT_S) -> Answer:
    """Run a program; ``said`` is its standard output as text."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Answer(reason=f"{HANGS}: nothing for {limit_s:g} s")
    except OSError as error:
        return Answer(reason=str(error.strerror))
    said, errors = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode < 0:
        return Answer(said, f"it crashes with {_signal(-done.returncode)}")
    if done.returncode:
        return Answer(said, _told(errors.strip() or said.strip()) or f"exit code {done.returncode}")
    return Answer(said)


def _told(text: str) -> str:
    """The line that says why: a missing library's, wherever it stands, or else the last."""
    lines = text.splitlines()
    return next((line.strip() for line in lines if "cannot open shared object file" in line), (lines or [""])[-1])


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
