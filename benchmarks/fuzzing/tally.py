"""Count the outcomes of damaged inputs: accepted, refused in one line, or anything else."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from edgerec.errors import EdgerecError
from edgerec.utils.text import is_printable

if TYPE_CHECKING:
    from typer.testing import Result

# Time limit of one input in seconds. It is generous, because the machine may be busy.
LIMIT_S = 60.0
MOST_CHARACTERS = 1500

# Tries one input, and raises EdgerecError if edgerec refuses it.
Attempt = Callable[[Random], None]
Kind = Callable[[Path, Path], AbstractContextManager[Attempt]]


class Broken(Exception):
    """A defect of edgerec: a crash, a traceback, a hang, or any other wrong behavior."""


@dataclass
class Figures:
    """The number of inputs of one kind, by outcome.

    Attributes:
        kind: name of the kind of input.
        tried, accepted, refused: number of all, accepted and refused inputs.
        other: number of inputs with any other outcome, which must be 0.
        slowest_s: maximum time for one input, in seconds.
        examples: descriptions of the first other outcomes, with the seeds to reproduce them.
    """

    kind: str
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    other: int = 0
    slowest_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, case: str, outcome: str, text: str, seconds: float) -> None:
        """Count the outcome of one case: ``accepted``, ``refused`` or ``broken``."""
        self.tried += 1
        self.slowest_s = round(max(self.slowest_s, seconds), 3)
        self.accepted += outcome == "accepted"
        self.refused += outcome == "refused"
        if outcome == "broken":
            _add_example(self, case, text)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def tally(name: str, kind: Kind, bundle: Path, work: Path, *, seed: int, count: int) -> Figures:
    """Try ``count`` inputs of one kind. Each input has its own seed, so that it can be repeated alone."""
    figures = Figures(name)
    work.mkdir(parents=True, exist_ok=True)
    with _limited() as limit, _collect_errors() as errors:
        try:
            with kind(bundle, work) as attempt:
                for number in range(count):
                    start = time.monotonic()
                    _try(figures, f"{name}-{seed}-{number}", attempt, limit, errors)
                    figures.slowest_s = round(max(figures.slowest_s, time.monotonic() - start), 3)
            if errors:
                raise Broken(errors[0])
        except Exception as error:  # e.g. a server that no longer responds after the last case
            figures.other += 1
            figures.examples.append(f"end: {error!r}")
    return figures


def _try(figures: Figures, seed: str, attempt: Attempt, limit: Callable[[float], None], errors: list[str]) -> None:
    figures.tried += 1
    try:
        limit(LIMIT_S)
        attempt(Random(seed))
        if errors:
            raise Broken(errors[0])
    except EdgerecError as error:
        if fault := error_fault(str(error)):
            _add_example(figures, seed, f"{fault}: {str(error)[:300]!r}")
        else:
            figures.refused += 1
    except Exception as error:
        _add_example(figures, seed, f"{error!r}"[:600])
    else:
        figures.accepted += 1
    finally:
        limit(0)
        errors.clear()


def _add_example(figures: Figures, seed: str, text: str) -> None:
    figures.other += 1
    if len(figures.examples) < 20:
        figures.examples.append(f"{seed}: {text}")


def run_command(arguments: Sequence[str], exit_codes: Collection[int]) -> Result:
    """Run an edgerec command in this process. Raise :class:`Broken` after a traceback or an unexpected exit code."""
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Broken(f"{arguments}: {result.exception!r}") from result.exception
    if "Traceback" in result.output or result.exit_code not in exit_codes:
        raise Broken(f"{arguments}: exit code {result.exit_code}: {result.output[-300:]!r}")
    return result


def peak_memory_bytes() -> int:
    """Return the largest amount of resident memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def error_fault(message: str) -> str:
    """Return why an error message is not acceptable; empty if it is one readable line."""
    if not message.strip() or not is_printable(message):
        return "not one printable line"
    return "too long" if len(message) > MOST_CHARACTERS else ""


@contextlib.contextmanager
def _limited() -> Iterator[Callable[[float], None]]:
    """Yield a function that sets the time limit in seconds (0 for none). After the limit, :class:`Broken` is raised."""

    def raise_broken(*_: Any) -> None:
        raise Broken(f"hangs: nothing for {LIMIT_S:g} s")

    before = signal.signal(signal.SIGALRM, raise_broken)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)  # type: ignore[func-returns-value]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _collect_errors() -> Iterator[list[str]]:
    """Collect errors that occur elsewhere: exceptions that end threads or are ignored, and errors in the log."""
    errors: list[str] = []

    class ErrorHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(f"logged: {record.getMessage()}")

    handler = ErrorHandler(logging.ERROR)
    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda arguments: errors.append(f"in {arguments.thread}: {arguments.exc_value!r}")
    sys.unraisablehook = lambda arguments: errors.append(f"ignored: {arguments.exc_value!r}")
    logging.getLogger().addHandler(handler)
    try:
        yield errors
    finally:
        logging.getLogger().removeHandler(handler)
        threading.excepthook, sys.unraisablehook = before
