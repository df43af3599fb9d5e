"""A queue that stores messages on disk until they are delivered."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from edgerec.errors import EdgerecError

log = logging.getLogger(__name__)

# Interval between attempts to open the file again.
REOPEN_S = 10.0

_TABLE = (
    "CREATE TABLE IF NOT EXISTS messages "
    "(id INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, retain INTEGER NOT NULL)"
)
_INDEX = (
    "SELECT id, typeof(id), typeof(topic), typeof(payload), length(CAST(topic AS BLOB)) + length(payload) "
    "FROM messages ORDER BY id"
)

# sqlite3 raises UnicodeDecodeError if the text in a damaged file is not valid UTF-8.
_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)


@dataclass(frozen=True)
class Message:
    """One message. Newer messages have greater IDs."""

    id: int
    topic: str
    payload: bytes
    retain: bool

    @property
    def size_bytes(self) -> int:
        """Size of the topic and the payload."""
        return len(self.topic.encode()) + len(self.payload)


class MessageQueue:
    """A bounded queue in a SQLite file. Messages stay in the file until they are removed, even if the process ends.

    While the disk is full or broken, messages are kept in memory, within the same limits, and each new message triggers
    another attempt to write the file. All methods are thread-safe. Only one process at a time can open the file.

    Attributes:
        dropped: number of lost messages: the queue was full, the file was damaged, or the messages were still in memory
            when the queue was closed.
        newest: ID of the newest message.
    """

    def __init__(self, path: Path, *, most: int = 10_000, most_bytes: int = 10_000_000) -> None:
        """Open or create the file.

        Args:
            path: path of the file; its folder is created if necessary.
            most: maximum number of messages; if there are more, the oldest are dropped.
            most_bytes: maximum total size of all topics and payloads; beyond, the oldest messages are dropped.

        Raises:
            EdgerecError: the folder cannot be created or written, or another process has opened the file.
        """
        self.dropped = self.newest = 0
        self._path, self._most, self._most_bytes = path, most, most_bytes
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._memory: deque[Message] = deque()
        self._gone: list[int] = []
        self._said_s = -60.0
        self._tried_s = float("-inf")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgerecError(f"{path.parent} cannot hold waiting messages ({error.strerror}): give another") from None
        self._db: sqlite3.Connection | None = None
        self._open()
        if self._db is None:
            # If the file cannot be opened yet, it may contain messages. Time-based IDs are greater than their IDs.
            self.newest = time.time_ns() // 1000

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, number: int) -> bool:
        return number in self._sizes

    def put(self, topic: str, payload: bytes, retain: bool) -> int:
        """Append a message and return its ID. If the disk is full or broken, the message is kept in memory."""
        with self._lock:
            self.newest += 1
            message = Message(self.newest, topic, payload, retain)
            self._memory.append(message)
            self._count(message)
            self._trim()
            self._save()
            return message.id

    def pending(self, most: int) -> list[Message]:
        """Return up to ``most`` messages, oldest first."""
        with self._lock:
            found: list[Message] = []
            if self._db is not None:
                query = "SELECT id, topic, payload, retain FROM messages ORDER BY id LIMIT ?"
                try:
                    rows = self._db.execute(query, (most + len(self._gone),)).fetchall()
                    found = [Message(row[0], row[1], row[2], bool(row[3])) for row in rows if row[0] in self._sizes]
                except _ERRORS as error:
                    self._damaged(error)
            return [*found, *self._memory][:most]

    def remove(self, number: int) -> None:
        """Remove the message with the ID ``number``, because it was delivered."""
        with self._lock:
            size = self._sizes.pop(number, None)
            if size is None:
                self.dropped -= 1  # the message was counted as dropped, but had been sent before
                return
            self._bytes -= size
            self._forget(number)
            self._save()

    def discard(self, number: int) -> None:
        """Remove the message with the ID ``number``, because it cannot be delivered, and count it as lost."""
        self.dropped += 1
        self.remove(number)

    def close(self) -> None:
        """Close the file. Undelivered messages stay in the file; messages that exist only in memory are lost."""
        with self._lock:
            self._tried_s = float("-inf")
            self._save()
            if self._memory:
                self.dropped += len(self._memory)
                log.warning("%s: %d messages could not be written and are lost", self._path, len(self._memory))
                for message in self._memory:
                    self._bytes -= self._sizes.pop(message.id, 0)
                self._memory.clear()
            if self._db is not None:
                self._db.close()
                self._db = None
            self._tried_s = float("inf")  # a sending thread that has not ended yet must not open the file again

    def _open(self) -> None:
        self._tried_s = time.monotonic()
        try:
            self._db = self._connect()
        except _ERRORS as error:
            why = str(error)
            if "locked" in why:
                raise EdgerecError(
                    f"{self._path} is in use by another process: give each camera its own folder or prefix"
                ) from None
            if "unable to open" in why or "readonly" in why:
                raise EdgerecError(f"{self._path.parent} cannot hold waiting messages ({why}): give another") from None
            if "full" in why or "I/O" in why:
                self._failure(error)
            else:
                self._damaged(error)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=0.5, check_same_thread=False)
        sizes: dict[int, int] = {}
        try:
            # Do not flush each message to the disk. A power failure may lose the last messages but not damage the file.
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
                db.execute(f"PRAGMA {pragma}")
            with db:
                db.execute(_TABLE)
            for number, *types, size in db.execute(_INDEX):
                if types != ["integer", "text", "blob"] or not 0 < number < 2**53:
                    raise sqlite3.DatabaseError(f"message {number} is none")
                sizes[number] = size
        except BaseException:
            db.close()
            raise
        # The messages of the file are older than those in memory.
        self._sizes = sizes | self._sizes
        self._bytes += sum(sizes.values())
        self.newest = max(self.newest, *sizes, 0)
        self._trim()
        return db

    def _count(self, message: Message) -> None:
        self._sizes[message.id] = message.size_bytes
        self._bytes += message.size_bytes

    def _trim(self) -> None:
        while len(self._sizes) > self._most or self._bytes > self._most_bytes:
            oldest = next(iter(self._sizes))
            self._bytes -= self._sizes.pop(oldest)
            self.dropped += 1
            self._forget(oldest)

    def _forget(self, number: int) -> None:
        """Delete a message from memory, or from the file at the next write."""
        for at, message in enumerate(self._memory):
            if message.id == number:
                del self._memory[at]
                return
        self._gone.append(number)

    def _save(self) -> None:
        """Write all pending changes to the file. If this fails, they are written with the next message."""
        if self._db is None and time.monotonic() - self._tried_s >= REOPEN_S:
            try:
                self._open()
            except EdgerecError as error:
                self._failure(error)
        if self._db is None:
            return
        try:
            with self._db:
                self._db.executemany("DELETE FROM messages WHERE id = ?", [(number,) for number in self._gone])
                self._db.executemany(
                    "INSERT INTO messages VALUES (?, ?, ?, ?)",
                    [(message.id, message.topic, message.payload, message.retain) for message in self._memory],
                )
        except _ERRORS as error:
            if "malformed" in str(error) or "not a database" in str(error):
                self._damaged(error)
            else:
                self._failure(error)
        else:
            self._memory.clear()
            self._gone.clear()

    def _failure(self, error: Exception) -> None:
        if time.monotonic() - self._said_s >= 60:
            self._said_s = time.monotonic()
            log.warning("%s: %s: messages wait in memory only", self._path, error)

    def _damaged(self, error: Exception) -> None:
        """Rename a damaged file and create a new one. The messages in the old file are counted as lost."""
        waiting = {message.id for message in self._memory}
        lost = [number for number in self._sizes if number not in waiting]
        aside = self._path.with_suffix(".damaged")
        log.warning("%s is damaged (%s), kept as %s: %d messages lost", self._path, error, aside.name, len(lost))
        self.dropped += len(lost)
        if self._db is not None:
            self._db.close()
            self._db = None
        self._sizes, self._bytes, self._gone = {}, 0, []
        for message in self._memory:
            self._count(message)
        try:
            self._path.replace(aside)
            for ending in ("-wal", "-shm"):
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
            self._db = self._connect()
        except _ERRORS as again:
            self._failure(again)
