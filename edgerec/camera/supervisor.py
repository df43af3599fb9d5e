"""Read each source in its own thread, monitor the connections and reconnect lost sources."""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from types import TracebackType

from edgerec.camera.frame import Frame
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.camera.sources import Address, CaptureFormat, Source
from edgerec.contract.preprocess import Image
from edgerec.errors import SourceError

log = logging.getLogger(__name__)

# Maximum number of frames of a file that are decoded in advance.
READ_AHEAD = 2
# Maximum time in seconds to wait for the threads of closed sources.
JOIN_S = 1.0
# Maximum time in seconds by which a hanging connection delays the end of the process.
EXIT_S = 16.0
# Maximum number of hung threads per source. Python cannot stop a thread that hangs in a driver.
MAX_HUNG = 3
# Maximum number of queued state changes. If the queue is full, the oldest state change is dropped.
MAX_CHANGES = 1000
# Interval in seconds at which a waiting thread checks whether stop() was called.
_POLL_S = 0.1

Event = Frame | StateChange


class SourceSupervisor:
    """Iterates over the frames and state changes of several sources in round-robin order.

    For a live source, only the newest frame is kept, so that predictions are up to date. For a file, every frame is
    kept, and reading pauses until the frames are consumed. Iteration ends when all sources have ended. :attr:`errors`
    then contains the errors of the sources that failed.
    """

    def __init__(self, addresses: Sequence[Address], timeouts: Timeouts | None = None) -> None:
        # A plain Lock would deadlock in __exit__ if Ctrl-C interrupted the main thread after it acquired the lock.
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._sources = [
            _SupervisedSource(address, timeouts or Timeouts(), lock, self._changed) for address in addresses
        ]
        self._turn = 0
        self._stopped = False

    def stop(self) -> None:
        """Stop the iteration within ``_POLL_S`` seconds. May be called from any thread or signal handler."""
        self._stopped = True

    def __enter__(self) -> SourceSupervisor:
        try:
            for source in self._sources:
                source.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        with self._changed:
            for source in self._sources:
                source.stop()
        deadline = time.monotonic() + JOIN_S
        for source in self._sources:
            source.join(deadline)

    def __iter__(self) -> Iterator[Event]:
        return (event for event in self.events() if event is not None)

    def events(self, idle_s: float | None = None) -> Iterator[Event | None]:
        """Yield frames and state changes, or None after ``idle_s`` seconds without an event."""
        while not self._stopped:
            with self._changed:
                event = self._pop()
                if event is None:
                    if all(source.state is SourceState.ENDED for source in self._sources):
                        return
                    self._changed.wait(_POLL_S if idle_s is None else min(idle_s, _POLL_S))
                    event = self._pop()
            if event is not None or idle_s is not None:
                yield event

    def frames(self) -> Iterator[Frame]:
        """Yield only the frames. After the last frame, raise the error of any source that failed."""
        for event in self:
            if isinstance(event, Frame):
                yield event
        for error in self.errors:
            raise error

    @property
    def errors(self) -> list[SourceError]:
        """Errors of the sources that have failed."""
        return [source.error for source in self._sources if source.error is not None]

    @property
    def overtaken(self) -> int:
        """Number of live frames dropped because a newer frame arrived before they were consumed."""
        return sum(source.overtaken for source in self._sources)

    def _pop(self) -> Event | None:
        count = len(self._sources)
        for step in range(count):
            event = self._sources[(self._turn + step) % count].pop()
            if event is not None:
                self._turn = (self._turn + step + 1) % count
                return event
        return None


class _SupervisedSource:
    """Reads and reconnects one source. Callers must hold ``lock`` unless a method's docstring says otherwise."""

    def __init__(
        self, address: Address, timeouts: Timeouts, lock: threading.RLock, changed: threading.Condition
    ) -> None:
        self.address, self.stopped, self.overtaken = address, False, 0
        self.state: SourceState | None = None
        self.error: SourceError | None = None
        self._timeouts, self._changed = timeouts, changed
        # Separate condition variables ensure that a frame wakes only the thread waiting for it.
        self._room_available, self._source_changed = threading.Condition(lock), threading.Condition(lock)
        self._frames: deque[Frame] = deque()
        self._changes: deque[StateChange] = deque(maxlen=MAX_CHANGES)
        self._count = 0
        # Monotonic time of the last frame, or the source's start time if no frame has arrived yet.
        self._last_s = self._started_s = time.monotonic()
        self._connection: _SourceConnection | None = None
        self._hung: list[_SourceConnection] = []
        self._thread = threading.Thread(target=self._supervise, name=f"edgerec-{address.name}", daemon=True)

    def start(self) -> None:
        self._last_s = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Stop reading and wake all waiting threads."""
        self.stopped = True
        if self._connection is not None:
            self._connection.interrupt()
        for condition in (self._room_available, self._source_changed, self._changed):
            condition.notify_all()

    def join(self, deadline: float) -> None:
        """Wait for the threads to end, until the monotonic time ``deadline``. The caller must not hold the lock."""
        if self._thread.ident is not None:  # The thread is not started if an earlier source fails.
            self._thread.join(max(0.0, deadline - time.monotonic()))
        for connection in (*self._hung, *([self._connection] if self._connection else [])):
            connection.thread.join(max(0.0, deadline - time.monotonic()))
            if connection.thread.is_alive():
                # CPython before 3.14 aborts the process if native code returns to Python during interpreter shutdown.
                atexit.register(connection.thread.join, EXIT_S)

    def pop(self) -> Event | None:
        """Return the next frame or state change, or None if nothing is queued. ``ended`` comes after the last frame."""
        if self._changes and (self._changes[0].state is not SourceState.ENDED or not self._frames):
            return self._changes.popleft()
        self._room_available.notify()
        return self._frames.popleft() if self._frames else None

    def offer(self, connection: _SourceConnection, image: Image, name: str) -> bool:
        """Queue a new image, or return False if the connection should be closed. The caller must not hold the lock."""
        grabbed_s = time.monotonic()
        captured_s = connection.captured_s or grabbed_s
        with self._changed:
            if not self.address.live:
                self._room_available.wait_for(lambda: self.stopped or len(self._frames) < READ_AHEAD)
            if self.stopped or connection is not self._connection:
                return False
            if not self._count:
                self._started_s = grabbed_s
            self._last_s, connection.last_s = grabbed_s, grabbed_s
            media_s = None if self.address.live else connection.media_s()
            connection.count += 1
            if self.state is not SourceState.LIVE:
                self._set(SourceState.LIVE, connection.format_text())
                self._source_changed.notify_all()  # The monitoring thread must now check for a stale source.
            overtaken = connection.new_overtaken()
            self._count, self.overtaken = self._count + overtaken, self.overtaken + overtaken
            if self.address.live and self._frames:
                self._frames.clear()
                self.overtaken += 1
            self._frames.append(
                Frame(
                    image,
                    self._count,
                    captured_s,
                    name,
                    self.address.name,
                    media_s=media_s,
                    started_s=self._started_s,
                    stream=self.address.stream,
                    full_size=connection.full_size,
                )
            )
            self._count += 1
            self._changed.notify_all()
            return True

    def connection_ended(self, connection: _SourceConnection, error: Exception | None) -> None:
        """Record that a connection has ended and store its error. The caller must not hold the lock."""
        with self._changed:
            connection.ended, connection.error = True, error
            if connection in self._hung:
                self._hung.remove(connection)
            self._source_changed.notify_all()

    def _supervise(self) -> None:
        pauses = self._timeouts.pauses()
        with self._changed:
            while not self.stopped:
                self._set(SourceState.CONNECTING)
                connection = self._connection = _SourceConnection(self)
                error = self._watch(connection)
                if self.stopped:
                    return
                if connection.count:
                    pauses = self._timeouts.pauses()
                never_worked = not self._count and not self.address.remote
                if not self.address.live or never_worked or self._give_up_in_s(connection) <= 0:
                    self._end(error)
                    return
                self._set(SourceState.LOST, self._lost_reason(error))
                if len(self._hung) >= MAX_HUNG:
                    self._wait(lambda: len(self._hung) < MAX_HUNG, self._give_up_in_s(connection))
                self._wait(lambda: False, next(pauses))
                if self._give_up_in_s(connection) <= 0:
                    self._end(error)
                    return

    def _watch(self, connection: _SourceConnection) -> SourceError | None:
        """Wait until the connection ends or times out. Return its error, or None if the source has ended."""
        timeouts, name = self._timeouts, self.address.name
        while not (connection.ended or self.stopped):
            # If the source has a fixed interval, the timeout starts when the next image is due.
            silent_s = time.monotonic() - connection.last_s - connection.period_s
            if not self.address.live:
                left_s = math.inf
            elif not connection.count:
                left_s = timeouts.open_s - silent_s
            elif silent_s < timeouts.stale_s:
                left_s = timeouts.stale_s - silent_s
            else:
                left_s = timeouts.lost_s - silent_s
                if self.state is SourceState.LIVE:
                    self._set(SourceState.STALE, f"no frame for {timeouts.stale_s:g} s")
            # A give_up_s of 0 takes effect only after the connection is lost.
            if self.address.live and timeouts.give_up_s:
                left_s = min(left_s, self._give_up_in_s(connection))
            if left_s <= 0:
                self._hung.append(connection)
                self._connection = None
                connection.interrupt()
                silent_s = time.monotonic() - self._last_s
                return SourceError(
                    f"{name} delivered no frame for {silent_s:.1f} s: check that the camera is connected and not used "
                    "by another program"
                )
            self._source_changed.wait(_timeout(left_s))
        if connection.error is None or isinstance(connection.error, SourceError):
            return connection.error
        log.debug("%s", name, exc_info=connection.error)
        return SourceError(f"{name} failed: {connection.error}")

    def _give_up_in_s(self, connection: _SourceConnection) -> float:
        limit_s = self._timeouts.give_up_s
        return math.inf if limit_s is None else self._last_s + connection.period_s + limit_s - time.monotonic()

    def _lost_reason(self, error: SourceError | None) -> str:
        if len(self._hung) < MAX_HUNG:
            return str(error)
        return f"{error}; {MAX_HUNG} connections hang, and edgerec waits until one of them ends before it reconnects"

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        self._source_changed.wait_for(lambda: self.stopped or condition(), _timeout(seconds))

    def _set(self, state: SourceState, reason: str = "") -> None:
        self.state = state
        self._changes.append(StateChange(self.address.name, state, time.monotonic(), reason))
        self._changed.notify_all()

    def _end(self, error: SourceError | None) -> None:
        self.error = error
        self._set(SourceState.ENDED, str(error) if error else "")


class _SourceConnection:
    """Opens and reads a source in its own thread, because drivers can hang. Each reconnection creates a new object."""

    def __init__(self, supervised: _SupervisedSource) -> None:
        self.last_s, self.count, self.ended = time.monotonic(), 0, False
        self.error: Exception | None = None
        self._supervised = supervised
        self._source: Source | None = None
        self._interrupted, self._reported = False, 0
        self.thread = threading.Thread(target=self._read, name=f"edgerec-read-{supervised.address.name}", daemon=True)
        self.thread.start()

    def format_text(self) -> str:
        """Return a description of a live source's image format, and of the requested format if it differs."""
        address = self._supervised.address
        return _format_text(self._source.format, address.requested) if self._source and address.live else ""

    @property
    def period_s(self) -> float:
        """Interval between images in seconds if the source has a low, fixed rate, otherwise 0."""
        return float(getattr(self._source, "period_s", 0.0))

    @property
    def captured_s(self) -> float:
        """Monotonic time in seconds at which the last image was captured, or 0 if unknown."""
        return float(getattr(self._source, "captured_s", 0.0))

    @property
    def full_size(self) -> tuple[int, int] | None:
        """Width and height of the current image before its reduction, or None if it was not reduced."""
        return getattr(self._source, "full_size", None)

    def media_s(self) -> float | None:
        """Return the current image's timestamp in the video in seconds, or None if the source has no timestamps."""
        position_s: float | None = getattr(self._source, "position_s", None)
        fps = self._source.format.fps if self._source and self._supervised.address.stream else 0.0
        return self.count / fps if position_s is None and fps else position_s

    def new_overtaken(self) -> int:
        """Return the number of images dropped since the last call because newer ones arrived."""
        already_reported, self._reported = self._reported, getattr(self._source, "overtaken", 0)
        return self._reported - already_reported

    def interrupt(self) -> None:
        """Stop reading, interrupting a blocked read if the source supports it. May be called from any thread."""
        self._interrupted = True
        if interrupt := getattr(self._source, "interrupt", None):
            interrupt()

    def _read(self) -> None:
        error: Exception | None = None
        try:
            source = self._source = self._supervised.address.open()
            try:
                for image, name in source.images() if not self._interrupted else ():
                    if not self._supervised.offer(self, image, name):
                        break
            finally:
                source.close()
        except Exception as raised:  # connection_ended() handles the error.
            error = raised
        self._supervised.connection_ended(self, error)


def _timeout(seconds: float) -> float | None:
    return None if seconds == math.inf else max(0.0, seconds)


def _format_text(actual: CaptureFormat, requested: CaptureFormat) -> str:
    differs = any(value and value != other for value, other in zip(astuple(requested), astuple(actual), strict=True))
    return f"{actual}{f' (requested: {requested})' if differs else ''}"
