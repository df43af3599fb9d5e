"""Write predictions to a CSV file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgerec.camera.config import ExistingFile
from edgerec.camera.frame import Result
from edgerec.camera.source_state import StateChange
from edgerec.errors import EdgerecError, InUseError, OutputExistsError
from edgerec.utils.atomic import checked_output
from edgerec.utils.lock import lock_descriptor
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
# Columns of the CSV file for a camera with named regions.
REGION_COLUMNS = (*COLUMNS[:2], "region", *COLUMNS[2:])
SUFFIXES = (".csv", ".tsv", ".txt", ".log", "")  # Pipes and devices usually have no suffix.


class CsvFile:
    """Writes a CSV file with a header and one row per result. ``captured_s`` is Unix time, and scores are in [0, 1].

    Each row is written immediately with a single system call so that all rows are complete even if the process is
    killed.
    """

    closed = False
    name = "csv"
    uses_images = False

    def __init__(self, path: str | Path, existing: ExistingFile = "refuse", *, regions: bool = False) -> None:
        """Create the file and write the header.

        Args:
            path: the file, with the suffix .csv, .tsv, .txt or .log, or without a suffix.
            existing: what to do if the file exists. ``"refuse"`` raises an error, ``"overwrite"`` replaces a file that
                this class wrote, and ``"append"`` adds rows to a file with the same columns.
            regions: whether to add the column ``region``, which is empty for sources without regions.

        Raises:
            OutputExistsError: the file exists, and either ``existing`` is ``"refuse"``, or ``"overwrite"`` was chosen
                for a file that this class did not write.
            InUseError: another process writes the file.
            EdgerecError: the file cannot be written, has another suffix, or has other columns.
        """
        self._path = checked_output(path, suffixes=SUFFIXES)
        self.outputs = (self._path,)
        self._overwrite, self._exclusive = existing == "overwrite", existing != "append"
        self._prepared = False
        self._columns = REGION_COLUMNS if regions else COLUMNS
        if self._overwrite:
            _refuse_other_file(self._path)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(self._path, flags | (os.O_EXCL if existing == "refuse" else 0), 0o666)
        except FileExistsError:
            raise OutputExistsError(f"{path} exists: choose another name, or use --overwrite or --csv-append") from None
        except OSError as error:
            raise EdgerecError(
                f"{path} cannot be written ({error.strerror}): choose a file in an existing, writable folder"
            ) from None
        try:
            self._lock_and_check()
        except BaseException:
            os.close(self._file)
            raise

    def write(self, result: Result) -> None:
        """Write one row. If this fails, remove the partial row from the file and raise :class:`EdgerecError`."""
        self._prepare()
        prediction, decision = result.classification, result.decision
        decision_values: list[Any] = ["", "", ""]
        if decision is not None:
            decision_values = [decision.label, f"{decision.score:.4f}", int(decision.changed)]
        self._write_row(
            [
                f"{result.to_dict()['captured_s']:.6f}",
                result.frame.origin,
                *self._region(result),
                result.frame.index,
                f"{result.age_ms:.3f}",
                prediction.label,
                prediction.index,
                f"{prediction.score:.4f}",
                *decision_values,
            ]
        )

    def _region(self, result: Result) -> list[str]:
        if self._columns is COLUMNS:
            return []
        return [result.frame.region.name if result.frame.region else ""]

    def state(self, change: StateChange) -> None:
        """Prepare an existing file at the first event. State changes are not written."""
        self._prepare()

    def close(self) -> None:
        """Flush the rows to disk."""
        with contextlib.suppress(OSError):  # Pipes and devices do not support fsync.
            os.fsync(self._file)
        os.close(self._file)

    def _lock_and_check(self) -> None:
        """Lock the file and check its header, or write the header to a new file."""
        status = os.fstat(self._file)
        # A shared lock lets several processes append to the file.
        if stat.S_ISREG(status.st_mode) and not lock_descriptor(self._file, shared=not self._exclusive):
            raise InUseError(f"{self._path} is in use by another edgerec camera: choose another name")
        if not status.st_size:
            self._write_row(self._columns)
            self._prepared = True
            return
        header = _line(self._columns)
        if not self._overwrite and _read_at(self._file, 0, len(header)) != header:
            raise EdgerecError(
                f"cannot append to {self._path} because its first line is not the CSV header of edgerec camera: "
                "choose another name"
            )

    def _prepare(self) -> None:
        """Truncate or repair an existing file only at the first event, because another sink may fail to open."""
        if self._prepared:
            return
        self._prepared = True
        if self._overwrite:
            os.ftruncate(self._file, 0)
            self._write_row(self._columns)
        elif _read_at(self._file, os.fstat(self._file).st_size - 1, 1) != b"\n":
            os.write(self._file, b"\n")  # Start a new line after a row truncated by a power failure.

    def _write_row(self, values: Sequence[Any]) -> None:
        line, before = _line(values), os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise EdgerecError(
                f"cannot write a row to {self._path} ({error.strerror}): check the disk. All previous rows are complete"
            ) from None
        if written < len(line):
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise EdgerecError(
                f"cannot write a complete row to {self._path}: free some disk space. All previous rows are complete"
            )


def _read_at(file: int, position: int, count: int) -> bytes:
    # Seeking does not affect writes in append mode. Windows does not support os.pread.
    os.lseek(file, position, os.SEEK_SET)
    return os.read(file, count)


def _refuse_other_file(path: Path) -> None:
    """Raise :class:`OutputExistsError` if ``path`` is a nonempty file that edgerec has not written."""
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            start = file.read(len(COLUMNS[0]) + 1)
    except OSError as error:
        raise EdgerecError(
            f"{path} cannot be read ({error.strerror}): check its permissions, or choose another name"
        ) from None
    if start not in (b"", f"{COLUMNS[0]},".encode()):
        raise OutputExistsError(
            f"{path} was not written by edgerec camera and will not be overwritten: choose another name"
        )


def _line(values: Sequence[Any]) -> bytes:
    return csv_line(values).encode()
