"""Report the progress of long operations to a callback, e.g. for a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """The progress of a long operation.

    Attributes:
        stage: name of the operation's current stage.
        done, total: the stage's number of completed steps, and its total number of steps.
        text: additional text shown beside the progress bar.
        may_ask_user: whether the stage may ask the user for input on the terminal. In this case, no progress bar may be
            drawn until the next report.
    """

    stage: str
    done: int
    total: int
    text: str = ""
    may_ask_user: bool = False


MAX_REPORTS = 200


def steps(count: int) -> range:
    """Return the indices of the iterations after which a loop of ``count`` iterations reports its progress.

    The iterations are evenly spaced, and the last iteration is always included.
    """
    every = max(1, count // MAX_REPORTS)
    return range((count - 1) % every, count, every) if count else range(0)


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Ignore a progress report. This is the default callback."""


def track(items: Iterable[T], stage: str, total: int, listener: Listener) -> Iterator[T]:
    """Yield items, and report the progress to a callback.

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
