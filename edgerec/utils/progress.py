"""Progress reports of long operations. The library calls a listener, and the command line draws a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress report: ``done`` of ``total`` steps of ``stage`` are complete; ``text`` is shown beside the bar."""

    stage: str
    done: int
    total: int
    text: str = ""


# Approximate number of progress reports of a loop over many images.
MOST_REPORTS = 200


def steps(count: int) -> range:
    """Return evenly spaced positions in a loop over ``count`` items at which the loop reports its progress.

    The last position is always included.
    """
    every = max(1, count // MOST_REPORTS)
    return range((count - 1) % every, count, every) if count else range(0)


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """The listener of those who do not listen."""
