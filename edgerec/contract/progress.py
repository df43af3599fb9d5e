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


# The most reports of a loop over images.
MOST_REPORTS = 200


def steps(count: int) -> range:
    """Return the positions in a loop over ``count`` items at which it reports: the first one, and evenly many more.

    The last position is always one of them.
    """
    every = max(1, count // MOST_REPORTS)
    return range((count - 1) % every, count, every) if count else range(0)


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """The listener of those who do not listen."""
