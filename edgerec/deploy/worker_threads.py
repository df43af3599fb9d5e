"""Run functions in worker threads, and return their results through a queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def start_worker(
    function: Callable[[int], T], index: int, results: queue.SimpleQueue[tuple[int, T | BaseException]], name: str
) -> None:
    """Call a function in a new thread, and put its result or exception into a queue.

    The thread is a daemon thread, so that the process can exit while the thread waits for a device.

    Args:
        function: function to call with ``index``.
        index: index that identifies the device.
        results: queue that receives a tuple of the index and the result or exception of ``function``.
        name: name of the thread.
    """

    def work() -> None:
        try:
            results.put((index, function(index)))
        except BaseException as error:
            results.put((index, error))

    threading.Thread(target=work, name=name, daemon=True).start()
