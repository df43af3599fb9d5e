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
    except OSError:  # If the disk is full or read-only, the output is discarded.
        return open(os.devnull, "r+b")


@contextlib.contextmanager
def captured_stderr() -> Iterator[IO[bytes]]:
    """Return a context manager that redirects stderr, including output of C++ code, to the yielded file.

    The redirection applies to the whole process, so that output of other threads is captured as well. Only one thread
    can be in the block at a time. Other threads wait.
    """
    with _LOCK, _temporary_file() as captured, _redirected(captured, sys.stderr, 2):
        yield captured


@contextlib.contextmanager
def captured_output() -> Iterator[IO[bytes]]:
    """Return a context manager that redirects stdout and stderr to the yielded file."""
    with (
        _LOCK,
        _temporary_file() as captured,
        _redirected(captured, sys.stderr, 2),
        _redirected(captured, sys.stdout, 1),
    ):
        yield captured


@contextlib.contextmanager
def _redirected(captured: IO[bytes], stream: IO[str] | None, number: int) -> Iterator[None]:
    """Redirect file descriptor ``number`` and the Python stream ``stream`` to the open file ``captured``.

    The file descriptor of ``stream`` may be different from ``number``, e.g. in notebooks.
    """
    numbers = {number}
    # In notebooks, sys.stdout and sys.stderr have no file descriptor.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        numbers.add(stream.fileno() if stream else number)
    with contextlib.ExitStack() as stack:
        if stream:  # sys.stdout and sys.stderr are None if they were closed at startup
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
