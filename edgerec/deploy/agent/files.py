"""Read, write and delete files so that a power failure never leaves an incomplete file or folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import Any

# Maximum number of bytes of a file that are read into memory.
MAX_READ_BYTES = 16 << 20
CHUNK_BYTES = 1 << 18
# Suffix that is added to the name of a folder before the folder is deleted.
REMOVED = ".removed"
# Suffix of the name of a file that is being written. After a power failure, the incomplete file may remain.
NEW = ".new"


def fsync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file atomically, so that a power failure leaves either the old or the new content."""
    partial = path + NEW
    remove_path(partial)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync_folder(os.path.dirname(path))


def write_json(path: str, value: Any, mode: int = 0o644) -> None:
    write_file(path, json.dumps(value, indent=1).encode(), mode)


def read_json(path: str) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dictionary if the file is missing or invalid."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(MAX_READ_BYTES))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_bytes(path: str) -> bytes | None:
    """Return the content of a file, or None if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_READ_BYTES)
    except OSError:
        return None


def remove_path(path: str) -> None:
    """Delete a file, a symbolic link or a folder if it exists."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)


def remove_folder(path: str) -> None:
    """Rename a folder and then delete it, so that an interruption does not leave an incomplete folder at ``path``."""
    removed = path + REMOVED
    remove_path(removed)
    if os.path.isdir(path):
        os.rename(path, removed)
        fsync_folder(os.path.dirname(path))
        remove_path(removed)


def file_digest(path: str) -> str:
    """Return the SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def content_digest(content: bytes | None) -> str:
    """Return the SHA-256 digest of a file's content, or an empty string if the file is missing."""
    return "" if content is None else hashlib.sha256(content).hexdigest()


def size_of(path: str) -> int:
    """Return the size of a file in bytes, or 0 if the file is missing."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def free_bytes(path: str) -> int:
    """Return the free space on the file system that contains a folder, or on ``/`` if the folder does not exist."""
    space = os.statvfs(path if os.path.isdir(path) else "/")
    return space.f_bavail * space.f_frsize
