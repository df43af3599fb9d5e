"""Run a function for several devices in threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def start_worker(
    function: Callable[[int], T], index: int, results: queue.SimpleQueue[tuple[int, T | BaseException]], name: str
) -> None:
    """Call a function in a new thread, and put the index and its result or exception into a queue.

    The thread is a daemon, because a thread that waits for a device must not delay the end of the process.

    Args:
        function: function to call with ``index``.
        index: index of the device.
        results: queue that receives the index, and the result or the exception of ``function``.
        name: name of the thread.
    """

    def work() -> None:
        try:
            results.put((index, function(index)))
        except BaseException as error:
            results.put((index, error))

    threading.Thread(target=work, name=name, daemon=True).start()
