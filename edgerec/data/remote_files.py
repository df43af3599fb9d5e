"""Read files from a local folder or from an object store that TensorFlow supports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgerec.errors import DataError
from edgerec.utils.optional import require


def is_remote(location: str) -> bool:
    """Return whether a location is a URL, such as ``gs://bucket/folder``."""
    return "://" in location


def join_path(location: str, name: str) -> str:
    """Join a file name to a folder path or URL."""
    return f"{location.rstrip('/')}/{name}" if is_remote(location) else str(Path(location) / name)


@contextmanager
def open_file(location: str, name: str) -> Iterator[BinaryIO]:
    """Open a local or remote file for reading.

    Raises:
        DataError: the file cannot be opened or read.
    """
    path = join_path(location, name)
    if is_remote(location):
        with _remote(path) as file:
            yield file
        return
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def _remote(path: str) -> Iterator[BinaryIO]:
    tf = require("tensorflow")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            yield file
    except tf.errors.UnimplementedError:
        raise DataError(
            f"{path} cannot be read, because TensorFlow has no file system for {path.partition('://')[0]}://. "
            "Install and import tensorflow-io, or mount the bucket as a folder"
        ) from None
    except tf.errors.OpError as error:
        raise DataError(f"{path} cannot be read: {error.message}") from None


def read_file(location: str, name: str, max_bytes: int) -> bytes:
    """Read a file of at most ``max_bytes`` bytes.

    Raises:
        DataError: the file cannot be read, or is larger.
    """
    with open_file(location, name) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DataError(
            f"{join_path(location, name)} exceeds the limit of {max_bytes:,} bytes and is probably damaged: "
            "pack the data again"
        )
    return content


def file_size(location: str, name: str) -> int | None:
    """Return a file's size in bytes, or None if the file does not exist."""
    if is_remote(location):
        tf = require("tensorflow")
        try:
            return int(tf.io.gfile.stat(join_path(location, name)).length)
        except tf.errors.OpError:
            return None
    try:
        return (Path(location) / name).stat().st_size
    except (OSError, ValueError):
        return None
