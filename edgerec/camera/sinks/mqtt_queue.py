"""A queue that stores messages in a file until delivery, because paho keeps them only in memory."""

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

# Minimum time in seconds between attempts to open the queue file.
REOPEN_S = 10.0

_TABLE = (
    "CREATE TABLE IF NOT EXISTS messages "
    "(id INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, retain INTEGER NOT NULL)"
)
_INDEX = (
    "SELECT id, typeof(id), typeof(topic), typeof(payload), length(CAST(topic AS BLOB)) + length(payload) "
    "FROM messages ORDER BY id"
)

# sqlite3 raises UnicodeDecodeError if text in a damaged file is not valid UTF-8.
_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)


@dataclass(frozen=True)
class Message:
    """A queued message. Newer messages have greater IDs."""

    id: int
    topic: str
    payload: bytes
    retain: bool

    @property
    def size_bytes(self) -> int:
        """Size of the message's topic and payload in bytes."""
        return len(self.topic.encode()) + len(self.payload)


class MessageQueue:
    """A bounded message queue that is stored in a SQLite file.

    Messages stay in the file until they are removed, even if the process ends.
    If the file cannot be written, e.g. because the disk is full, messages are kept in memory, within the same limits,
    and each new message triggers another attempt to write the file. All methods are thread-safe. Only one process at a
    time can open the file.

    Attributes:
        dropped: number of messages that were lost because the queue was full, because the file was damaged, or because
            they were only in memory when the queue was closed.
        newest: ID of the newest message.
    """

    def __init__(self, path: Path, *, max_messages: int = 10_000, max_bytes: int = 10_000_000) -> None:
        """Open or create the file.

        Args:
            path: path of the file; its folder is created if necessary.
            max_messages: maximum number of messages. If there are more, the oldest messages are dropped.
            max_bytes: maximum total size of topics and payloads. If it is exceeded, the oldest messages are dropped.

        Raises:
            EdgerecError: the folder cannot be created or written, or another process has opened the file.
        """
        self.dropped = self.newest = 0
        self._path, self._max_messages, self._max_bytes = path, max_messages, max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._memory: deque[Message] = deque()
        self._deleted_ids: list[int] = []
        self._logged_s = -60.0
        self._opened_s = float("-inf")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgerecError(
                f"{path.parent} cannot store queued messages ({error.strerror}): choose another folder"
            ) from None
        self._db: sqlite3.Connection | None = None
        self._open()
        if self._db is None:
            # A time-based ID is greater than all IDs in the queue file, which cannot be opened yet.
            self.newest = time.time_ns() // 1000

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, number: int) -> bool:
        return number in self._sizes

    def put(self, topic: str, payload: bytes, retain: bool) -> int:
        """Append a message and return its ID. If writing to the file fails, keep the message in memory."""
        with self._lock:
            self.newest += 1
            message = Message(self.newest, topic, payload, retain)
            self._memory.append(message)
            self._count(message)
            self._trim()
            self._save()
            return message.id

    def pending(self, limit: int) -> list[Message]:
        """Return up to ``limit`` messages, oldest first."""
        with self._lock:
            messages: list[Message] = []
            if self._db is not None:
                query = "SELECT id, topic, payload, retain FROM messages ORDER BY id LIMIT ?"
                try:
                    rows = self._db.execute(query, (limit + len(self._deleted_ids),)).fetchall()
                    messages = [Message(row[0], row[1], row[2], bool(row[3])) for row in rows if row[0] in self._sizes]
                except _ERRORS as error:
                    self._replace_damaged_file(error)
            return [*messages, *self._memory][:limit]

    def remove(self, number: int) -> None:
        """Remove the delivered message with ID ``number``."""
        with self._lock:
            size = self._sizes.pop(number, None)
            if size is None:
                self.dropped -= 1  # The message was counted as dropped but has been delivered.
                return
            self._bytes -= size
            self._forget(number)
            self._save()

    def discard(self, number: int) -> None:
        """Remove the undeliverable message with ID ``number``, and count it as dropped."""
        self.dropped += 1
        self.remove(number)

    def close(self) -> None:
        """Close the file. Undelivered messages stay in it, but messages held only in memory are lost."""
        with self._lock:
            self._opened_s = float("-inf")
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
            self._opened_s = float("inf")  # Prevent the sending thread from opening the file again.

    def _open(self) -> None:
        self._opened_s = time.monotonic()
        try:
            self._db = self._connect()
        except _ERRORS as error:
            reason = str(error)
            if "locked" in reason:
                raise EdgerecError(
                    f"{self._path} is in use by another process: give each camera its own folder or prefix"
                ) from None
            if "unable to open" in reason or "readonly" in reason:
                raise EdgerecError(
                    f"{self._path.parent} cannot store queued messages ({reason}): choose another folder"
                ) from None
            if "full" in reason or "I/O" in reason:
                self._warn(error)
            else:
                self._replace_damaged_file(error)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=0.5, check_same_thread=False)
        sizes: dict[int, int] = {}
        try:
            # With these SQLite settings, a power failure can lose the latest messages but cannot corrupt the file.
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
                db.execute(f"PRAGMA {pragma}")
            with db:
                db.execute(_TABLE)
            for number, *types, size in db.execute(_INDEX):
                if types != ["integer", "text", "blob"] or not 0 < number < 2**53:
                    raise sqlite3.DatabaseError(f"row {number} of the queue is not a valid message")
                sizes[number] = size
        except BaseException:
            db.close()
            raise
        # Messages in the queue file are older than messages in memory.
        self._sizes = sizes | self._sizes
        self._bytes += sum(sizes.values())
        self.newest = max(self.newest, *sizes, 0)
        self._trim()
        return db

    def _count(self, message: Message) -> None:
        self._sizes[message.id] = message.size_bytes
        self._bytes += message.size_bytes

    def _trim(self) -> None:
        while len(self._sizes) > self._max_messages or self._bytes > self._max_bytes:
            oldest = next(iter(self._sizes))
            self._bytes -= self._sizes.pop(oldest)
            self.dropped += 1
            self._forget(oldest)

    def _forget(self, number: int) -> None:
        """Delete a message. A message that is already in the file is removed by the next write."""
        for at, message in enumerate(self._memory):
            if message.id == number:
                del self._memory[at]
                return
        self._deleted_ids.append(number)

    def _save(self) -> None:
        """Write all changes to the file. If this fails, the changes are written together with the next message."""
        if self._db is None and time.monotonic() - self._opened_s >= REOPEN_S:
            try:
                self._open()
            except EdgerecError as error:
                self._warn(error)
        if self._db is None:
            return
        try:
            with self._db:
                self._db.executemany("DELETE FROM messages WHERE id = ?", [(number,) for number in self._deleted_ids])
                self._db.executemany(
                    "INSERT INTO messages VALUES (?, ?, ?, ?)",
                    [(message.id, message.topic, message.payload, message.retain) for message in self._memory],
                )
        except _ERRORS as error:
            if "malformed" in str(error) or "not a database" in str(error):
                self._replace_damaged_file(error)
            else:
                self._warn(error)
        else:
            self._memory.clear()
            self._deleted_ids.clear()

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._logged_s >= 60:
            self._logged_s = time.monotonic()
            log.warning("%s cannot be written (%s): messages are only kept in memory", self._path, error)

    def _replace_damaged_file(self, error: Exception) -> None:
        """Rename a damaged file and create a new one. Messages in the old file count as lost."""
        ids_in_memory = {message.id for message in self._memory}
        lost = [number for number in self._sizes if number not in ids_in_memory]
        renamed = self._path.with_suffix(".damaged")
        log.warning(
            "%s is damaged (%s) and is renamed to %s: %d messages are lost", self._path, error, renamed.name, len(lost)
        )
        self.dropped += len(lost)
        if self._db is not None:
            self._db.close()
            self._db = None
        self._sizes, self._bytes, self._deleted_ids = {}, 0, []
        for message in self._memory:
            self._count(message)
        try:
            self._path.replace(renamed)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._db = self._connect()
        except _ERRORS as second_error:
            self._warn(second_error)
