"""Signal handling that stops the camera cleanly instead of raising ``KeyboardInterrupt`` at an arbitrary point."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Signals sent by Ctrl-C, Ctrl-Break, a service manager or a closing terminal.
SIGNALS = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if (number := getattr(signal, name, None)) is not None
)

# Signals received within this many seconds are treated as one signal.
DEBOUNCE_S = 1.0


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Context manager that makes all :data:`SIGNALS` raise ``KeyboardInterrupt`` in the main thread.

    Signals that are ignored, e.g. because of nohup, or whose handler was not installed by Python, stay unchanged. In
    other threads, nothing changes.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Interrupts:
    """Context manager that calls ``stop`` on a signal, and delays ``KeyboardInterrupt`` until the block ends.

    Python can raise ``KeyboardInterrupt`` between any two instructions, e.g. after a lock was acquired and before the
    block that releases the lock. The lock would then stay acquired, and other threads would wait for it forever.

    ``stop`` is called for each of the first two signals. Further signals raise ``KeyboardInterrupt`` immediately.
    ``stop`` must only set flags and must not use a lock. Signals within ``DEBOUNCE_S`` count as one signal because the
    command ``timeout`` and shells send a signal both to the process and to its process group.

    Only handlers that raise ``KeyboardInterrupt`` are replaced, and only in the main thread.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop, self._count, self._counted_s = stop, 0, float("-inf")
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.default_int_handler:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._count and error is None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if now_s - self._counted_s < DEBOUNCE_S:
            return
        self._counted_s = now_s
        self._count += 1
        if self._count > 2:
            raise KeyboardInterrupt
        self._stop()
