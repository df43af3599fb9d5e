"""Capture what C++ libraries write directly to the standard streams of the process."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

# A file descriptor belongs to the whole process. If two threads redirected it at the same time, the second thread would
# restore the temporary file of the first one, and stderr would be lost.
_LOCK = threading.RLock()


def _scratch() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full or read-only disk: then it is not kept
        return open(os.devnull, "r+b")


@contextlib.contextmanager
def captured_stderr() -> Iterator[IO[bytes]]:
    """Redirect the standard error stream, including output of C++ code, into the yielded file.

    The redirection applies to the whole process: output of other threads is captured as well. Threads that enter the
    block at the same time wait for each other.
    """
    with _LOCK, _scratch() as captured, _into(captured, sys.stderr, 2):
        yield captured


@contextlib.contextmanager
def captured_output() -> Iterator[IO[bytes]]:
    """Redirect both standard streams, for libraries that print to stdout, where scripts expect only results."""
    with _LOCK, _scratch() as captured, _into(captured, sys.stderr, 2), _into(captured, sys.stdout, 1):
        yield captured


@contextlib.contextmanager
def _into(captured: IO[bytes], stream: IO[str] | None, number: int) -> Iterator[None]:
    """Redirect the descriptor ``number``, to which C++ writes, and Python's ``stream``, which may have another one."""
    numbers = {number}
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a notebook's stream has no descriptor
        numbers.add(stream.fileno() if stream else number)
    with contextlib.ExitStack() as stack:
        if stream:  # Python has None for a standard stream that was closed when it started
            stream.flush()
        for each in numbers:
            try:
                kept = os.dup(each)
            except OSError:  # a service may run without standard streams
                continue
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, each)
            os.dup2(captured.fileno(), each)
        if stream:
            stack.callback(stream.flush)
        yield
