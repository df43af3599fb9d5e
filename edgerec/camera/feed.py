"""A source kept alive: read in a thread, watched in another, connected again when it is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from types import TracebackType

from edgerec.camera.frame import Frame
from edgerec.camera.sources import Address, CaptureFormat, Source
from edgerec.camera.states import Patience, State, StateChange
from edgerec.contract.preprocess import Image
from edgerec.errors import SourceError

log = logging.getLogger(__name__)

# How many decoded pictures of a file wait for the model: enough to overlap, little memory.
READ_AHEAD = 2
JOIN_S = 1.0
# Connections that hang inside a driver cannot be ended, only left; so many at once, then no new one is made.
MOST_HUNG = 3

Event = Frame | StateChange


class Feeds:
    """All sources of a camera: iterates over their frames and state changes, each source in its turn.

    Of a live source only the newest frame is kept, so that answers are never about the past; of a file every frame
    is kept and the reading waits. Iteration ends when every source has. A source that ends by a failure leaves it
    in :attr:`errors`.
    """

    def __init__(self, addresses: Sequence[Address], patience: Patience | None = None) -> None:
        # Ctrl-C may interrupt the main thread between acquiring the lock and entering its block. The lock then stays
        # acquired, and with a plain Lock the same thread would wait for itself in __exit__.
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._feeds = [_Feed(address, patience or Patience(), lock, self._changed) for address in addresses]
        self._turn = 0

    def __enter__(self) -> Feeds:
        for feed in self._feeds:
            feed.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            for feed in self._feeds:
                feed.stop()
        deadline = time.monotonic() + JOIN_S
        for feed in self._feeds:
            feed.join(deadline)

    def __iter__(self) -> Iterator[Event]:
        while (event := self._next()) is not None:
            yield event

    def frames(self) -> Iterator[Frame]:
        """The frames alone; raises :class:`SourceError` at the end, when a source ended by a failure."""
        for event in self:
            if isinstance(event, Frame):
                yield event
        for error in self.errors:
            raise error

    @property
    def errors(self) -> list[SourceError]:
        """Of the sources that ended by a failure."""
        return [feed.error for feed in self._feeds if feed.error is not None]

    @property
    def overtaken(self) -> int:
        """How many frames of live sources newer ones replaced before anybody took them."""
        return sum(feed.overtaken for feed in self._feeds)

    def _next(self) -> Event | None:
        count = len(self._feeds)
        with self._changed:
            while True:
                for step in range(count):
                    feed = self._feeds[(self._turn + step) % count]
                    event = feed.take()
                    if event is not None:
                        self._turn = (self._turn + step + 1) % count
                        return event
                if all(feed.state is State.ENDED for feed in self._feeds):
                    return None
                self._changed.wait()


class _Feed:
    """One source. What is not said to be otherwise is used under ``lock``; ``changed`` tells of frames and changes."""

    def __init__(
        self, address: Address, patience: Patience, lock: threading.RLock, changed: threading.Condition
    ) -> None:
        self.address, self.stopped, self.overtaken = address, False, 0
        self.state: State | None = None
        self.error: SourceError | None = None
        self._patience, self._changed = patience, changed
        # Of their own, so that a frame wakes nobody but who waits for it.
        self._room, self._watched = threading.Condition(lock), threading.Condition(lock)
        self._frames: deque[Frame] = deque()
        self._changes: deque[StateChange] = deque()
        self._count = 0
        self._connection: _Connection | None = None
        self._hung: list[_Connection] = []
        self._thread = threading.Thread(target=self._supervise, name=f"edgerec-{address.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more of it; what waits for a picture ends."""
        self.stopped = True
        if self._connection is not None:
            self._connection.interrupt()
        for condition in (self._room, self._watched, self._changed):
            condition.notify_all()

    def join(self, deadline: float) -> None:
        """Without the lock: wait for the threads; one that hangs in a driver ends with the process."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        for connection in (*self._hung, *([self._connection] if self._connection else [])):
            connection.thread.join(max(0.0, deadline - time.monotonic()))

    def take(self) -> Event | None:
        """The next frame or change. A source's end comes behind its last frame."""
        if self._changes and (self._changes[0].state is not State.ENDED or not self._frames):
            return self._changes.popleft()
        self._room.notify()
        return self._frames.popleft() if self._frames else None

    def offer(self, connection: _Connection, image: Image, name: str) -> bool:
        """Without the lock: take a picture that was grabbed just now; False when nobody wants more of them."""
        grabbed_s = time.monotonic()
        with self._changed:
            if not self.address.live:
                self._room.wait_for(lambda: self.stopped or len(self._frames) < READ_AHEAD)
            if self.stopped or connection is not self._connection:
                return False
            connection.last_s, connection.count = grabbed_s, connection.count + 1
            if self.state is not State.LIVE:
                self._set(State.LIVE, connection.formats())
                self._watched.notify_all()  # from now on it may become stale
            passed = connection.passed()
            self._count, self.overtaken = self._count + passed, self.overtaken + passed
            if self.address.live and self._frames:
                self._frames.clear()
                self.overtaken += 1
            self._frames.append(Frame(image, self._count, grabbed_s, name, self.address.name))
            self._count += 1
            self._changed.notify_all()
            return True

    def over(self, connection: _Connection, error: Exception | None) -> None:
        """Without the lock: a connection's thread has come to its end."""
        with self._changed:
            connection.ended, connection.error = True, error
            if connection in self._hung:
                self._hung.remove(connection)
            self._watched.notify_all()

    def _supervise(self) -> None:
        wait_s, last_picture_s = self._patience.first_wait_s, time.monotonic()
        with self._changed:
            while not self.stopped:
                self._set(State.CONNECTING)
                connection = self._connection = _Connection(self)
                error = self._watch(connection)
                if self.stopped:
                    return
                if connection.count:
                    wait_s, last_picture_s = self._patience.first_wait_s, connection.last_s
                limit = self._patience.give_up_s
                never = not self._count and not self.address.remote
                late = limit is not None and time.monotonic() - last_picture_s >= limit
                if not self.address.live or never or late:
                    self._end(error)
                    return
                self._set(State.LOST, str(error))
                self._watched.wait_for(lambda: self.stopped or len(self._hung) < MOST_HUNG)
                self._watched.wait_for(lambda: self.stopped, wait_s)
                wait_s = min(2 * wait_s, self._patience.longest_wait_s)

    def _watch(self, connection: _Connection) -> SourceError | None:
        """Wait until a connection is over, by itself or for its silence; why, if it is a failure."""
        patience, name = self._patience, self.address.name
        while not (connection.ended or self.stopped):
            # A source with a long period may stay silent until its next image is due.
            silent_s = time.monotonic() - connection.last_s - connection.period_s
            if not self.address.live:
                left_s = None
            elif not connection.count:
                left_s = patience.open_s - silent_s
            elif silent_s < patience.stale_s:
                left_s = patience.stale_s - silent_s
            else:
                left_s = patience.lost_s - silent_s
                if self.state is State.LIVE:
                    self._set(State.STALE, f"no picture for {patience.stale_s:g} s")
            if left_s is not None and left_s <= 0:
                self._hung.append(connection)
                self._connection = None
                connection.interrupt()
                return SourceError(
                    f"{name} gave no picture for {silent_s:.1f} s: is it still connected, and not in use elsewhere?"
                )
            self._watched.wait(left_s)
        if connection.error is None or isinstance(connection.error, SourceError):
            return connection.error
        log.debug("%s", name, exc_info=connection.error)
        return SourceError(f"{name} failed: {connection.error}")

    def _set(self, state: State, reason: str = "") -> None:
        self.state = state
        self._changes.append(StateChange(self.address.name, state, time.monotonic(), reason))
        self._changed.notify_all()

    def _end(self, error: SourceError | None) -> None:
        self.error = error
        self._set(State.ENDED, str(error) if error else "")


class _Connection:
    """One attempt at a source, in a thread of its own: opening and reading may hang."""

    def __init__(self, feed: _Feed) -> None:
        self.last_s, self.count, self.ended = time.monotonic(), 0, False
        self.error: Exception | None = None
        self._feed = feed
        self._source: Source | None = None
        self._unwanted, self._passed = False, 0
        self.thread = threading.Thread(target=self._read, name=f"edgerec-read-{feed.address.name}", daemon=True)
        self.thread.start()

    def formats(self) -> str:
        """What a live source gives, and what it was asked for where that is something else."""
        address = self._feed.address
        return _formats(self._source.format, address.wanted) if self._source and address.live else ""

    @property
    def period_s(self) -> float:
        """Number of seconds between two images if the source has a slow, regular rate, otherwise 0."""
        return float(getattr(self._source, "period_s", 0.0))

    def passed(self) -> int:
        """How many pictures the source itself has left out for newer ones, since the last call."""
        before, self._passed = self._passed, getattr(self._source, "overtaken", 0)
        return self._passed - before

    def interrupt(self) -> None:
        """From another thread: nobody wants more pictures; what waits for one ends, where the source can do that."""
        self._unwanted = True
        if interrupt := getattr(self._source, "interrupt", None):
            interrupt()

    def _read(self) -> None:
        error: Exception | None = None
        try:
            source = self._source = self._feed.address.open()
            try:
                for image, name in source.images() if not self._unwanted else ():
                    if not self._feed.offer(self, image, name):
                        break
            finally:
                source.close()
        except Exception as caught:  # told by the feed, where the user stands
            error = caught
        self._feed.over(self, error)


def _formats(got: CaptureFormat, wanted: CaptureFormat) -> str:
    other = any(want and want != have for want, have in zip(astuple(wanted), astuple(got), strict=True))
    return f"{got}{f' (asked for {wanted})' if other else ''}"
