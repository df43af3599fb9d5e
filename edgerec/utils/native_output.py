"""Capture output that C++ libraries write directly to the process's standard streams."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

# Only one thread may redirect file descriptors at a time, because they belong to the whole process.
_LOCK = threading.RLock()


def _temporary_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # The output is discarded if the disk is full or read-only.
        return open(os.devnull, "r+b")


@contextlib.contextmanager
def captured_stderr() -> Iterator[IO[bytes]]:
    """Redirect stderr, including the output of C++ code, to a temporary file in a ``with`` block.

    The redirection applies to the whole process, so that output of other threads is captured as well. Only one thread
    can be in the block at a time. Other threads wait.
    """
    with _LOCK, _temporary_file() as captured, _redirected(captured, sys.stderr, 2):
        yield captured


@contextlib.contextmanager
def captured_output() -> Iterator[IO[bytes]]:
    """Redirect stdout and stderr, including the output of C++ code, to a temporary file in a ``with`` block."""
    with (
        _LOCK,
        _temporary_file() as captured,
        _redirected(captured, sys.stderr, 2),
        _redirected(captured, sys.stdout, 1),
    ):
        yield captured


@contextlib.contextmanager
def _redirected(captured: IO[bytes], stream: IO[str] | None, number: int) -> Iterator[None]:
    """Redirect a file descriptor and the corresponding Python stream to an open file."""
    numbers = {number}
    # The standard streams of notebooks have no file descriptors.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        numbers.add(stream.fileno() if stream else number)
    with contextlib.ExitStack() as stack:
        if stream:  # Standard streams are None if they were closed at startup.
            stream.flush()
        for each in numbers:
            try:
                original = os.dup(each)
            except OSError:  # Services may run without standard streams.
                continue
            stack.callback(os.close, original)
            stack.callback(os.dup2, original, each)
            os.dup2(captured.fileno(), each)
        if stream:
            stack.callback(stream.flush)
        yield
