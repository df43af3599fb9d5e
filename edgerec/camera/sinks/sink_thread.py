"""Run each sink in its own thread, so that a slow or failing sink does not affect the others."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from edgerec.camera.frame import Result
from edgerec.camera.sinks import Sink
from edgerec.camera.source_state import StateChange
from edgerec.utils.text import counted

log = logging.getLogger(__name__)

# Maximum number and total size in bytes of queued events. An empty queue accepts an event of any size.
MAX_EVENTS = 64
MAX_BYTES = 64_000_000
# Time in seconds after which a sink without progress is treated as hung if all sources are files.
STALLED_S = 600.0
# Time in seconds after which a sink without progress is treated as hung, for live sources or after stop().
CLOSE_S = 10.0
_POLL_S = 0.1
# Minimum time in seconds between two warnings about the same sink.
_WARN_S = 60.0


class _QueuedEvent(NamedTuple):
    event: Result | StateChange
    size_bytes: int
    droppable: bool


class SinkWorker:
    """Passes events to a sink in a separate thread, through a bounded queue.

    If the sink's attribute ``uses_images`` is False, the queue holds results without their images.

    Attributes:
        name: the sink's name, by default its class name.
        written: number of results that the sink has accepted.
        dropped: number of results that did not reach the sink because it was too slow, failed or hung.
        failed: number of exceptions raised by the sink.
        incomplete: whether results were lost because of an error, and not only because the sink was too slow for a live
            source.
    """

    def __init__(self, sink: Sink, *, lossless: bool, timeout_s: Callable[[], float] | None = None) -> None:
        """Start the thread.

        Args:
            sink: the sink. All of its methods are called in the thread.
            lossless: whether :meth:`put` waits if the queue is full. Otherwise the oldest result is dropped.
            timeout_s: function that returns the number of seconds without progress after which the sink is considered
                hung. It is called repeatedly during a wait. The default timeout is ``STALLED_S`` if ``lossless``,
                otherwise ``CLOSE_S``.
        """
        self.name = str(getattr(sink, "name", type(sink).__name__))
        self.written = self.dropped = self.failed = 0
        self._sink, self._lossless = sink, lossless
        self._timeout_s = timeout_s or (lambda: STALLED_S if lossless else CLOSE_S)
        self._uses_images = bool(getattr(sink, "uses_images", True))
        self._entries: deque[_QueuedEvent] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._current: Result | StateChange | None = None
        self._finishing = self._finished = self._incomplete = False
        self._unreported_drops = 0
        self._progress_s, self._warned_s = time.monotonic(), -_WARN_S
        self._thread = threading.Thread(target=self._work, name=f"edgerec-{self.name}", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the sink asks the camera to stop."""
        return self._sink.closed

    @property
    def lost(self) -> int:
        """Number of results that did not reach the sink, plus the number of items that the sink accepted but lost."""
        return self.dropped + self._dropped_by_sink

    @property
    def incomplete(self) -> bool:
        return self._incomplete or self._dropped_by_sink > 0

    def problems(self, results: int) -> Iterator[str]:
        """Yield a description of each kind of loss. ``results`` is the number of all results."""
        if self.dropped:
            reason = "" if self._incomplete else ", because it was too slow"
            yield f"{self.name} did not process {self.dropped} of {counted(results, 'result')}{reason}"
        if self._dropped_by_sink:
            noun, what = getattr(self._sink, "loss", ("result", "lost"))
            yield f"{self.name}: {counted(self._dropped_by_sink, noun)} {what}"
        if self.incomplete and not self.lost:
            yield f"{self.name} did not finish: its output may be incomplete"

    @property
    def _dropped_by_sink(self) -> int:
        return int(getattr(self._sink, "dropped", 0))

    def put(self, event: Result | StateChange, *, wait: bool | None = None) -> None:
        """Queue an event.

        Args:
            event: a result or a state change.
            wait: whether to wait while the queue is full, because the event must not be dropped, e.g. a frame of a
                file. If False, the oldest result in the queue is dropped. The call nevertheless waits if the queue
                contains results that must not be dropped. The default is ``lossless``.
        """
        wait = self._lossless if wait is None else wait
        if isinstance(event, Result) and not self._uses_images:
            event = event.without_image
        entry = _QueuedEvent(event, event.frame.size_bytes if isinstance(event, Result) else 0, not wait)
        with self._changed:
            if not self._entries and self._current is None:
                self._progress_s = time.monotonic()
            if self._has_room(entry):
                pass
            elif wait or any(not waiting.droppable and isinstance(waiting.event, Result) for waiting in self._entries):
                if not self._wait(lambda: self._has_room(entry) or self._sink.closed):
                    self._count_lost(int(isinstance(event, Result)), "the sink hangs")
                    return
            else:
                while not self._has_room(entry):
                    self._drop_oldest()
            self._entries.append(entry)
            self._bytes += entry.size_bytes
            self._changed.notify_all()

    def finish(self) -> None:
        """Process all queued events and close the sink in the background."""
        with self._changed:
            if not self._finishing:  # A second call must not restart the timeout.
                self._finishing, self._progress_s = True, time.monotonic()
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until the sink has processed all queued events and closed, or until it appears to hang."""
        self.finish()
        with self._changed:
            finished = self._wait(lambda: self._finished)
            if not finished:
                unprocessed = [entry.event for entry in self._entries] + [self._current]
                self._entries.clear()
                self._count_lost(sum(isinstance(event, Result) for event in unprocessed), "the sink does not finish")
        if finished:
            self._thread.join()
        elif abandon := getattr(self._sink, "abandon", None):
            abandon()

    def _has_room(self, entry: _QueuedEvent) -> bool:
        return not self._entries or (len(self._entries) < MAX_EVENTS and self._bytes + entry.size_bytes <= MAX_BYTES)

    def _wait(self, condition: Callable[[], Any]) -> bool:
        """Wait until ``condition`` is true. Return False if the sink appears to hang. The caller must hold the lock."""
        warned = False
        while not condition():
            idle_s = time.monotonic() - self._progress_s
            if idle_s >= self._timeout_s():
                return bool(condition())
            if idle_s >= _WARN_S and not warned:
                warned = True
                log.warning(
                    "%s has made no progress for %.0f s; still waiting (press Ctrl-C to stop)", self.name, idle_s
                )
            self._changed.wait(_POLL_S)
        return True

    def _drop_oldest(self) -> None:
        """Drop the oldest result, or the oldest state change if no results are queued."""
        results = (at for at, entry in enumerate(self._entries) if isinstance(entry.event, Result))
        at = next(results, 0)
        entry = self._entries[at]
        del self._entries[at]
        self._bytes -= entry.size_bytes
        if isinstance(entry.event, Result):
            self.dropped += 1
            self._unreported_drops += 1

    def _work(self) -> None:
        while (event := self._next()) is not None:
            try:
                if isinstance(event, StateChange):
                    self._sink.state(event)
                else:
                    self._sink.write(event)
                    self.written += 1
            except Exception as error:  # A failing sink must not stop the camera.
                self._failure(error, int(isinstance(event, Result)))
        try:
            self._sink.close()
        except Exception as error:
            self._failure(error, 0)
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _next(self) -> Result | StateChange | None:
        with self._changed:
            self._current, self._progress_s = None, time.monotonic()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._entries or self._finishing)
            if not self._entries:
                return None
            entry = self._entries.popleft()
            self._bytes -= entry.size_bytes
            self._current, self._progress_s = entry.event, time.monotonic()
            drops, self._unreported_drops = self._unreported_drops, 0
        # Log in this thread, because a blocked stderr must not delay the camera.
        if drops:
            self._warn("the sink is too slow")
        return entry.event

    def _failure(self, error: Exception, lost: int) -> None:
        self.failed += 1
        self._count_lost(lost, str(error))

    def _count_lost(self, count: int, reason: str) -> None:
        with self._changed:
            self.dropped += count
            self._incomplete = True
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._warned_s >= _WARN_S:
            self._warned_s = now
            log.warning("%s: %d results lost so far: %s", self.name, self.dropped, reason)
