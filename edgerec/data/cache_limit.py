"""Limit the size of the pixel cache by deleting the least recently used entries.

An entry consists of ``KEY.raw`` (the pixels) and ``KEY.json`` (the description). A process that has mapped an entry
holds a shared lock on ``KEY.raw``. Deleting an entry requires an exclusive lock, so that no process loses pixels that
are in use. The modification time of ``KEY.json`` is the time of the last use.
"""

from __future__ import annotations

import logging
import os
import re
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import EdgerecError
from edgerec.utils.atomic import cache_folder, delete_abandoned
from edgerec.utils.bounded_parsing import read_json
from edgerec.utils.byte_sizes import parse_size
from edgerec.utils.lock import POLL_S, lock_descriptor

log = logging.getLogger(__name__)

VARIABLE = "EDGEREC_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 20_000_000_000
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class CacheEntry:
    """Description of an entry in the pixel cache.

    Attributes:
        key: name of the entry's files without the suffix.
        source: path of the image folder, or ``arrays``. Empty if the description cannot be read.
        images: number of files or array rows, including files that are not images.
        input: height, width and channels of the model's input.
        size_bytes: size on disk.
        last_used: seconds since the epoch.
        in_use: whether a process is using the entry now.
    """

    key: str
    source: str
    images: int
    input: tuple[int, ...]
    size_bytes: int
    last_used: float
    in_use: bool


@dataclass(frozen=True)
class CacheReport:
    """Entries and size limit of the pixel cache.

    Attributes:
        folder: path of the cache.
        limit_bytes: size limit, or None if the cache is not limited.
        entries: all entries, most recently used first.
        removed: entries that were deleted by the call that returned this report.
    """

    folder: str
    limit_bytes: int | None
    entries: tuple[CacheEntry, ...]
    removed: tuple[CacheEntry, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Total size of all cache entries, in bytes."""
        return sum(entry.size_bytes for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return {
            "folder": self.folder,
            "limit_bytes": self.limit_bytes,
            "size_bytes": self.size_bytes,
            "entries": [asdict(entry) for entry in self.entries],
            "removed": [asdict(entry) for entry in self.removed],
        }


def pixel_cache(*, clear: bool = False, limit_bytes: int | None = None) -> CacheReport:
    """List the entries of the pixel cache, optionally after deleting some of them.

    Args:
        clear: delete all entries that are not in use.
        limit_bytes: delete the least recently used entries until the cache is at most this large.

    Raises:
        EdgerecError: the environment variable EDGEREC_CACHE_LIMIT is not a size.
    """
    removed: list[CacheEntry] = []
    if clear or limit_bytes is not None:
        removed = _evict(0 if clear else limit_bytes or 0)
    folder = cache_folder()
    entries = sorted(_entries(folder), key=lambda entry: -entry.last_used)
    return CacheReport(str(folder), limit(), tuple(entries), tuple(removed))


def limit() -> int | None:
    """Return the size limit of the pixel cache in bytes, or None if the cache is not limited.

    The environment variable EDGEREC_CACHE_LIMIT sets the limit, and ``none`` removes it. The default is 20 GB.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT_BYTES
    if text.lower() == "none":
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise EdgerecError(f"{VARIABLE}: {error}. To remove the limit, set {VARIABLE}=none") from None


def make_room(size_bytes: int, *, keep: Path) -> None:
    """Delete the least recently used entries until the cache has room for ``size_bytes`` more bytes.

    The entry ``keep`` is not deleted.
    """
    limit_bytes = limit()
    if limit_bytes is None:
        return
    for entry in _evict(max(0, limit_bytes - size_bytes), keep=keep.stem):
        log.info(
            "pixel cache: deleted the least recently used entry, %.1f MB of %s", entry.size_bytes / 1e6, entry.source
        )


def lock_shared(store: Path) -> int | None:
    """Lock a cache entry to prevent its deletion, and return the file descriptor that holds the lock.

    Return None if the entry does not exist.
    """
    while True:
        try:
            descriptor = os.open(store, os.O_RDONLY)
        except OSError:
            return None
        locked = lock_descriptor(descriptor, shared=True)
        try:
            # Check that the file was not deleted or replaced before the lock was granted.
            if locked and os.path.samestat(os.fstat(descriptor), store.stat()):
                return descriptor
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)
        time.sleep(0 if locked else POLL_S)


def unlock_with(images: npt.NDArray[np.uint8], descriptor: int) -> None:
    """Release a lock when an image array is garbage-collected."""
    mapping = getattr(images, "_mmap", None)
    weakref.finalize(images if mapping is None else mapping, os.close, descriptor)


def mark_used(description: Path) -> None:
    """Update the time at which a cache entry was last used."""
    with suppress(OSError):  # The cache can be read-only.
        os.utime(description)


def _evict(limit_bytes: int, keep: str = "") -> list[CacheEntry]:
    folder = cache_folder()
    delete_abandoned(folder)
    entries = sorted(_entries(folder), key=lambda entry: entry.last_used)
    total, removed = sum(entry.size_bytes for entry in entries), []
    for entry in entries:
        if total <= limit_bytes:
            break
        if entry.key != keep and _delete_unless_in_use(folder / f"{entry.key}.raw"):
            total -= entry.size_bytes
            removed.append(entry)
    return removed


def _entries(folder: Path) -> Iterator[CacheEntry]:
    keys = {path.stem for suffix in ("raw", "json") for path in folder.glob(f"*.{suffix}") if _KEY.fullmatch(path.stem)}
    for key in keys:
        store, description = folder / f"{key}.raw", folder / f"{key}.json"
        try:
            files = [path.stat() for path in (store, description) if path.exists()]
        except OSError:  # Another process may have deleted the file.
            continue
        source, images, shape = _read_description(description)
        yield CacheEntry(
            key,
            source,
            images,
            shape,
            sum(file.st_size for file in files),
            max((file.st_mtime for file in files), default=0.0),
            _in_use(store),
        )


def _read_description(description: Path) -> tuple[str, int, tuple[int, ...]]:
    try:
        values = read_json(description)
        return str(values.get("source", "")), int(values["count"]), tuple(map(int, values.get("input", ())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", 0, ()


def _in_use(store: Path) -> bool:
    with _exclusive_lock(store) as locked:
        return not locked


def _delete_unless_in_use(store: Path) -> bool:
    with _exclusive_lock(store) as locked:
        if locked:
            try:
                # The pixel file is deleted last, because it holds the lock of the cache entry.
                store.with_suffix(".json").unlink(missing_ok=True)
                store.unlink(missing_ok=True)
            except OSError:
                return False
        return locked


@contextmanager
def _exclusive_lock(store: Path) -> Iterator[bool]:
    try:
        descriptor = os.open(store, os.O_RDONLY)
    except FileNotFoundError:
        yield True  # An entry without a pixel file cannot be in use.
        return
    except OSError:
        yield False
        return
    try:
        yield lock_descriptor(descriptor)
    finally:
        os.close(descriptor)
