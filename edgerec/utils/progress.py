"""Report the progress of long operations to a callback, e.g. to draw a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """A progress report.

    Attributes:
        stage: name of the operation's current stage.
        done, total: the stage's number of completed steps, and its total number of steps.
        text: additional text shown beside the progress bar.
    """

    stage: str
    done: int
    total: int
    text: str = ""


# Maximum number of progress reports during a loop.
MAX_REPORTS = 200


def steps(count: int) -> range:
    """Return the indices of the iterations after which to report the progress of a loop of ``count`` iterations.

    The iterations are evenly spaced, and the last one is always included.
    """
    every = max(1, count // MAX_REPORTS)
    return range((count - 1) % every, count, every) if count else range(0)


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Do nothing; this is the default progress callback."""


def track(items: Iterable[T], stage: str, total: int, listener: Listener) -> Iterator[T]:
    """Yield ``items``, and report the progress at most a few hundred times.

    Args:
        items: the items of a loop.
        stage: name of the operation for the progress reports.
        total: number of items.
        listener: called with the progress.
    """
    reported = steps(total)
    for position, item in enumerate(items):
        yield item
        if position in reported:
            listener(Progress(stage, position + 1, total))
