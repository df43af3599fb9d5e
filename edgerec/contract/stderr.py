"""C++ libraries write straight to the process's standard streams; here they can be kept from the person."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO


def _scratch() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full or read-only disk: then it is not kept
        return open(os.devnull, "r+b")


@contextlib.contextmanager
def captured_stderr() -> Iterator[IO[bytes]]:
    """Send what the block writes to the standard error stream, C++ included, into the file that is given."""
    with _scratch() as said, _into(said, sys.stderr):
        yield said


@contextlib.contextmanager
def captured_output() -> Iterator[IO[bytes]]:
    """The same for both standard streams: for libraries that chat where a script reads answers."""
    with _scratch() as said, _into(said, sys.stderr), _into(said, sys.stdout):
        yield said


@contextlib.contextmanager
def _into(said: IO[bytes], stream: IO[str]) -> Iterator[None]:
    try:
        number = stream.fileno()
    except (OSError, ValueError, AttributeError):  # somebody replaced it, as a notebook does
        yield
        return
    stream.flush()
    kept = os.dup(number)
    os.dup2(said.fileno(), number)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(kept, number)
        os.close(kept)
