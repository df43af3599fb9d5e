"""Progress reports of long operations. The library passes them to a callback, e.g. to draw a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A progress report.

    Attributes:
        stage: name of the current stage of the operation.
        done, total: number of completed steps, and number of all steps of this stage.
        text: additional text that is shown beside the progress bar.
    """

    stage: str
    done: int
    total: int
    text: str = ""


# Maximum number of progress reports of a loop over many images.
MAX_REPORTS = 200


def steps(count: int) -> range:
    """Return evenly spaced positions in a loop over ``count`` items at which the loop reports its progress.

    The last position is always included.
    """
    every = max(1, count // MAX_REPORTS)
    return range((count - 1) % every, count, every) if count else range(0)


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Ignore a progress report. This is the default callback."""
