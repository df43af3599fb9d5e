"""Reduce the amount of freed memory that glibc's malloc keeps."""

from __future__ import annotations

import ctypes
import os

# These constants are defined in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The largest values that glibc's dynamic adjustment of these two parameters can reach.
_MMAP_THRESHOLD_BYTES, _TRIM_THRESHOLD_BYTES = 32 << 20, 64 << 20


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


def reuse_large_blocks() -> None:
    """Make glibc's malloc reuse freed blocks of up to 32 MiB instead of returning each block to the system.

    Without this, asyncio needs 60 µs for each call of ``recv``, because it allocates a buffer of 256 KiB, which the
    system has to map and to clear. glibc adjusts its threshold when such a block is freed, but not if the block was
    shrunk before, as asyncio does. With other C libraries, this function has no effect.
    """
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    _call_glibc("mallopt", _M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


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
