"""Map a function over many items with threads, and count the available CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# Items are processed in chunks, because ThreadPoolExecutor.map would keep all results in memory.
CHUNK = 256


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(function: Callable[[Any], T], items: Sequence[Any], chunk: int = CHUNK) -> Iterator[T]:
    """Compute ``function(item)`` for each item in a thread pool, and yield the results in order.

    This is useful for reading and decoding images, because OpenCV releases Python's global interpreter lock.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), chunk):
            yield from pool.map(function, items[start : start + chunk])
