"""Capture output that C++ libraries write directly to the standard streams of the process."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

# All threads share the file descriptors. If two threads redirected a descriptor at the same time, the second thread
# would save the first thread's temporary file as the original stream and restore it. stderr would then be lost.
_LOCK = threading.RLock()


def _scratch() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full or read-only disk: then it is not kept
        return open(os.devnull, "r+b")


@contextlib.contextmanager
def captured_stderr() -> Iterator[IO[bytes]]:
    """Redirect stderr, including output of C++ code, into the yielded file.

    The redirection applies to the whole process, so that output of other threads is captured as well. Only one thread
    can be in the block at a time. Other threads wait.
    """
    with _LOCK, _scratch() as captured, _into(captured, sys.stderr, 2):
        yield captured


@contextlib.contextmanager
def captured_output() -> Iterator[IO[bytes]]:
    """Redirect stdout and stderr into the yielded file, for libraries that print to stdout."""
    with _LOCK, _scratch() as captured, _into(captured, sys.stderr, 2), _into(captured, sys.stdout, 1):
        yield captured


@contextlib.contextmanager
def _into(captured: IO[bytes], stream: IO[str] | None, number: int) -> Iterator[None]:
    """Redirect the file descriptor ``number`` and Python's ``stream``, which may use a different descriptor."""
    numbers = {number}
    with contextlib.suppress(OSError, ValueError, AttributeError):  # streams of a notebook have no file descriptor
        numbers.add(stream.fileno() if stream else number)
    with contextlib.ExitStack() as stack:
        if stream:  # sys.stdout and sys.stderr are None if they were closed at startup
            stream.flush()
        for each in numbers:
            try:
                kept = os.dup(each)
            except OSError:  # services may run without standard streams
                continue
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, each)
            os.dup2(captured.fileno(), each)
        if stream:
            stack.callback(stream.flush)
        yield
