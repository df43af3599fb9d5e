"""Predictions as rows of a CSV file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from edgerec.camera.frame import Result
from edgerec.camera.states import StateChange
from edgerec.contract.files import checked_output
from edgerec.errors import EdgerecError, OutputExistsError
from edgerec.utils.text import csv_line

COLUMNS = (
    "captured_s",
    "source",
    "frame",
    "age_ms",
    "label",
    "index",
    "score",
    "decision",
    "decision_score",
    "changed",
)
Existing = Literal["refuse", "overwrite", "append"]
SUFFIXES = (".csv", ".tsv", ".txt", ".log", "")  # "": a pipe or a device


class Table:
    """One row for each result, under a header; ``captured_s`` is Unix time, scores are in [0, 1].

    Each row is handed to the system whole, and at once: whatever ends the process, the file has whole rows only.
    """

    closed = False
    name = "csv"
    uses_images = False

    def __init__(self, path: str | Path, existing: Existing = "refuse") -> None:
        """Create the file and write the header.

        Args:
            path: the file, with the suffix .csv, .tsv, .txt or .log, or without a suffix.
            existing: what to do if the file exists: ``"refuse"``, ``"overwrite"`` a table that this class wrote, or
                ``"append"`` to a table with the same columns, e.g. after a service was restarted.

        Raises:
            OutputExistsError: the file exists, and either ``existing`` is ``"refuse"`` or the file is not a table.
            EdgerecError: the file cannot be written, has another suffix, or has other columns.
        """
        if existing not in get_args(Existing):
            raise ValueError(f"existing is {existing!r}; expected one of {get_args(Existing)}")
        self._path = checked_output(path, suffixes=SUFFIXES)
        self.outputs = (self._path,)
        if existing == "overwrite":
            _refuse_other_file(self._path)
        how = {"refuse": os.O_EXCL, "overwrite": os.O_TRUNC, "append": 0}[existing]
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | how
        try:
            self._file = os.open(self._path, flags, 0o666)
        except FileExistsError:
            raise OutputExistsError(
                f"{path} exists: give another name, or --overwrite it, or --csv-append to it"
            ) from None
        except OSError as error:
            raise EdgerecError(
                f"{path} cannot be written ({error.strerror}): expected a file in a folder that exists"
            ) from None
        try:
            self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def write(self, result: Result) -> None:
        """Write one row; raises :class:`EdgerecError` when it cannot be, and leaves no half of it."""
        answer, decision = result.classification, result.decision
        said = result.to_dict()
        decided: list[Any] = ["", "", ""]
        if decision is not None:
            decided = [decision.label, f"{decision.score:.4f}", int(decision.changed)]
        self._row(
            [
                f"{said['captured_s']:.6f}",
                result.frame.source,
                result.frame.index,
                f"{result.age_ms:.3f}",
                answer.label,
                answer.index,
                f"{answer.score:.4f}",
                *decided,
            ]
        )

    def state(self, change: StateChange) -> None:
        """States are no results."""

    def close(self) -> None:
        """See to it that the rows are on the disk."""
        with contextlib.suppress(OSError):  # a pipe or a device
            os.fsync(self._file)
        os.close(self._file)

    def _begin(self) -> None:
        header = _line(COLUMNS)
        there = _read_at(self._file, 0, len(header)) if os.fstat(self._file).st_size else b""
        if there and there != header:
            raise EdgerecError(
                f"{self._path} is not a table that edgerec camera wrote with these columns: give another name"
            )
        if not there:
            self._row(COLUMNS)
        elif _read_at(self._file, os.fstat(self._file).st_size - 1, 1) != b"\n":  # the power went in mid-row
            os.write(self._file, b"\n")

    def _row(self, values: Sequence[Any]) -> None:
        line, before = _line(values), os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise EdgerecError(f"{self._path}: {error.strerror}; its rows so far are whole") from None
        if written < len(line):
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise EdgerecError(f"{self._path}: no space left for another row; its rows so far are whole")


def _read_at(file: int, position: int, count: int) -> bytes:
    os.lseek(file, position, os.SEEK_SET)  # Windows has no os.pread; writes append to the file in any case
    return os.read(file, count)


def _refuse_other_file(path: Path) -> None:
    """Raise :class:`OutputExistsError` if ``path`` is a file that is neither empty nor a table of this class."""
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            start = file.read(len(COLUMNS[0]) + 1)
    except OSError as error:
        raise EdgerecError(f"{path} cannot be read ({error.strerror}): choose another name") from None
    if start not in (b"", f"{COLUMNS[0]},".encode()):
        raise OutputExistsError(
            f"{path} is not a table of edgerec camera, so it is not overwritten: choose another name"
        )


def _line(values: Sequence[Any]) -> bytes:
    return csv_line(values).encode()
