"""How a long step tells its listener where it is. The library calls it; the command line draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` steps of ``stage``; ``text`` is what a person wants to see beside the bar."""

    stage: str
    done: int
    total: int
    text: str = ""


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """The listener of those who do not listen."""
