"""Limit the memory that the C library keeps for threads."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8  # from glibc's malloc.h


def use_one_malloc_arena() -> None:
    """Let all threads of this process share one arena of glibc's malloc. Call this function before threads start.

    By default, glibc creates up to eight arenas per CPU core, and each arena keeps freed memory. A camera that
    reconnects for days starts many threads, so its memory would grow until all arenas exist. The environment variable
    ``MALLOC_ARENA_MAX`` takes precedence. With other C libraries, this function has no effect.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; TypeError on Windows
        return
    mallopt(_M_ARENA_MAX, 1)
