"""A thread for each sink, so that a slow or failing one harms nobody else."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from edgerec.camera.frame import Result
from edgerec.camera.sinks import Sink
from edgerec.camera.states import StateChange

log = logging.getLogger(__name__)

WAITING = 64
# How long a file's frames wait for a sink that takes nothing.
PATIENCE_S = 5.0
CLOSE_S = 3.0


class SinkWorker:
    """Hands events to a sink in a thread of its own, through a bounded queue.

    Attributes:
        name: the sink's own, or its type's, for people.
        written: results that the sink took.
        dropped: results that it did not take: its queue was full, or it failed.
        failed: how often it raised.
    """

    def __init__(self, sink: Sink, *, lossless: bool) -> None:
        """Start the thread.

        Args:
            sink: closed in the thread, at the end.
            lossless: wait for a queue that is full, up to some seconds; otherwise the oldest result goes.
        """
        self.name = str(getattr(sink, "name", type(sink).__name__))
        self.written = self.dropped = self.failed = 0
        self._sink, self._lossless = sink, lossless
        self._events: deque[Result | StateChange] = deque()
        self._changed = threading.Condition()
        self._ending, self._said_s = False, 0.0
        self._thread = threading.Thread(target=self._work, name=f"edgerec-{self.name}", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the sink wants to end."""
        return self._sink.closed

    @property
    def lost(self) -> int:
        """What did not reach the sink, and what the sink says it lost itself."""
        return self.dropped + int(getattr(self._sink, "dropped", 0))

    def put(self, event: Result | StateChange) -> None:
        """Queue an event; never longer than ``PATIENCE_S``, and for live sources not at all."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: len(self._events) < WAITING or self._sink.closed, PATIENCE_S)
            if len(self._events) >= WAITING:
                self._drop_oldest()
            self._events.append(event)
            self._changed.notify_all()

    def close(self) -> None:
        """Let the sink take what waits, close it, and wait for that a bounded time."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("%s does not end: left alone with %d events", self.name, len(self._events))
            self.dropped += sum(isinstance(event, Result) for event in self._events)

    def _drop_oldest(self) -> None:
        # State changes are few and matter most: they stay.
        for at, event in enumerate(self._events):
            if isinstance(event, Result):
                del self._events[at]
                self.dropped += 1
                return
        self._events.popleft()

    def _work(self) -> None:
        while (event := self._next()) is not None:
            try:
                if isinstance(event, StateChange):
                    self._sink.state(event)
                else:
                    self._sink.write(event)
                    self.written += 1
            except Exception as error:  # whatever it is, the camera goes on
                self._failure(error, isinstance(event, Result))
        try:
            self._sink.close()
        except Exception as error:
            self._failure(error, False)

    def _next(self) -> Result | StateChange | None:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._ending)
            event = self._events.popleft() if self._events else None
            self._changed.notify_all()
            return event

    def _failure(self, error: Exception, lost: bool) -> None:
        self.failed += 1
        self.dropped += lost
        # The first of many, and then one a minute: a disk that is full must not fill it with words.
        now = time.monotonic()
        if self.failed == 1 or now - self._said_s > 60:
            self._said_s = now
            log.warning("%s: %d results lost so far: %s", self.name, self.dropped, error)
