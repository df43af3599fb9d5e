"""Reduce the amount of freed memory that glibc's malloc keeps."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8  # from glibc's malloc.h


def use_one_malloc_arena() -> None:
    """Limit glibc's malloc to one memory arena for all threads of this process.

    Call this function before starting threads. By default, glibc creates up to eight arenas per CPU core, and each
    arena keeps freed memory. A camera that reconnects for days starts many threads, so its memory would grow until all
    arenas exist. The environment variable ``MALLOC_ARENA_MAX`` takes precedence. With other C libraries, this function
    has no effect.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    _call_glibc("mallopt", _M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Make glibc's malloc return freed memory to the system, e.g. after a full queue was emptied.

    With other C libraries, this function has no effect.
    """
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *arguments: int) -> None:
    try:
        call = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):  # The C library is not glibc.
        return
    call(*arguments)
