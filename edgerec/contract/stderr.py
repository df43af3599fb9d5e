"""C++ libraries write straight to the process's standard error; here they can be kept from the person."""

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
    with _scratch() as said:
        try:
            stream = sys.stderr.fileno()
        except (OSError, ValueError, AttributeError):  # somebody replaced it, as a notebook does
            yield said
            return
        sys.stderr.flush()
        kept = os.dup(stream)
        os.dup2(said.fileno(), stream)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, stream)
            os.close(kept)
