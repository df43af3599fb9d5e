"""Parse JSON, TOML and zip files of unknown origin with limits, so that a small file cannot use unlimited memory."""

from __future__ import annotations

import io
import json
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerec.contract.files import read_at_most

MAX_TEXT_BYTES = 16 << 20
MAX_DEPTH = 64
# Number of objects and arrays. Each one takes at least 56 bytes of memory, but only 2 bytes of JSON.
MAX_CONTAINERS = 1_000_000
# Files of this total size are accepted, whatever their compression ratio.
MAX_SMALL_BYTES = 32 << 20
MAX_COMPRESSION_RATIO = 50
MAX_ZIP_ENTRIES = 10_000


def parse_json(text: str | bytes, *, max_bytes: int = MAX_TEXT_BYTES, **options: Any) -> Any:
    """Parse JSON; raise :class:`ValueError` if it is invalid, too long or nested too deeply.

    Args:
        text: the JSON text, as a string or as UTF-8.
        max_bytes: the maximum length.
        options: further arguments of :func:`json.loads`.
    """
    marks = (b"{", b"[") if isinstance(text, bytes) else ("{", "[")
    return _parsed(text, max_bytes, marks, lambda: json.loads(text, **options))


def parse_toml(text: str | bytes, *, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Parse TOML; raise :class:`ValueError` if it is invalid, too long or nested too deeply."""
    decoded = text.decode() if isinstance(text, bytes) else text
    values: dict[str, Any] = _parsed(decoded, max_bytes, ("{", "["), lambda: tomllib.loads(decoded))
    return values


def read_json(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file; raise :class:`OSError` if it cannot be read, and :class:`ValueError` as :func:`parse_json`."""
    return parse_json(read_at_most(path, max_bytes), max_bytes=max_bytes)


def read_toml(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Read a TOML file; raise :class:`OSError` if it cannot be read, and :class:`ValueError` as :func:`parse_toml`."""
    return parse_toml(read_at_most(path, max_bytes), max_bytes=max_bytes)


def _parsed(text: Any, max_bytes: int, marks: tuple[Any, Any], parse: Callable[[], Any]) -> Any:
    if len(text) > max_bytes:
        raise ValueError(f"it is longer than {max_bytes:,} bytes")
    if sum(map(text.count, marks)) > MAX_CONTAINERS:
        raise ValueError(f"it has more than {MAX_CONTAINERS:,} objects and arrays")
    too_deep = ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    try:
        value = parse()
    except RecursionError:
        raise too_deep from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return value
    raise too_deep


class UnpackedSizeError(zipfile.BadZipFile):
    """A zip archive whose files have an implausible or too large total size."""


def open_zip(content: bytes, max_bytes: int) -> zipfile.ZipFile:
    """Open a zip archive in memory for reading.

    Raises:
        UnpackedSizeError: its files have more than ``max_bytes`` or an implausible compression ratio, or there are more
            than :data:`MAX_ZIP_ENTRIES` files.
        zipfile.BadZipFile: it is not a zip archive.
    """
    # Count the entries before they are parsed, because each one takes much more memory than it takes in the file.
    if content.count(b"PK\1\2") > MAX_ZIP_ENTRIES:
        raise UnpackedSizeError(f"it has more than {MAX_ZIP_ENTRIES:,} files")
    archive = zipfile.ZipFile(io.BytesIO(content))
    _check_unpacked_size(archive, len(content), max_bytes, MAX_COMPRESSION_RATIO)
    return archive


def check_zip_file(path: Path, max_bytes: int, max_ratio: int = MAX_COMPRESSION_RATIO) -> None:
    """Check the total size of the files in a zip archive on disk; raise as :func:`open_zip`."""
    with zipfile.ZipFile(path) as archive:
        _check_unpacked_size(archive, path.stat().st_size, max_bytes, max_ratio)


def _check_unpacked_size(archive: zipfile.ZipFile, packed_bytes: int, max_bytes: int, max_ratio: int) -> None:
    # The size that an entry declares is reliable, because zipfile never unpacks more than this.
    total = sum(info.file_size for info in archive.infolist())
    if total > min(max_bytes, max(MAX_SMALL_BYTES, max_ratio * packed_bytes)):
        raise UnpackedSizeError(f"its {packed_bytes:,} bytes unpack to {total:,} bytes")
