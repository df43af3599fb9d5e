"""Parse untrusted JSON, TOML and zip files with size limits, so that a small file cannot exhaust the memory."""

from __future__ import annotations

import io
import json
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerec.utils.atomic import read_at_most

MAX_TEXT_BYTES = 16 << 20
MAX_DEPTH = 64
# tomllib's running time is quadratic in the number of parts of a dotted key.
MAX_TOML_BYTES, MAX_DOTS_PER_LINE = 1 << 20, 1000
# The number of objects and arrays is limited, because two bytes of JSON can take 56 bytes of memory.
MAX_CONTAINERS = 1_000_000
# An archive's compression ratio is checked only if its unpacked size exceeds this many bytes.
MAX_SMALL_BYTES = 32 << 20
MAX_COMPRESSION_RATIO = 50
MAX_ZIP_ENTRIES = 10_000


def parse_json(text: str | bytes, *, max_bytes: int = MAX_TEXT_BYTES, **options: Any) -> Any:
    """Parse JSON. Raise :class:`ValueError` if the text is invalid, too long or nested too deeply.

    Args:
        text: the JSON text, as a string or as UTF-8.
        max_bytes: maximum length of the text.
        options: additional arguments for :func:`json.loads`.
    """
    marks = (b"{", b"[") if isinstance(text, bytes) else ("{", "[")
    return _parsed(text, max_bytes, marks, lambda: json.loads(text, **options))


def parse_toml(text: str | bytes, *, max_bytes: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """Parse TOML. Raise :class:`ValueError` if the text is invalid, too long or nested too deeply."""
    decoded = text.decode() if isinstance(text, bytes) else text
    if len(decoded) <= max_bytes and any(line.count(".") > MAX_DOTS_PER_LINE for line in decoded.splitlines()):
        raise ValueError(f"a line has more than {MAX_DOTS_PER_LINE:,} dots")
    values: dict[str, Any] = _parsed(decoded, max_bytes, ("{", "["), lambda: tomllib.loads(decoded))
    return values


def read_json(path: Path) -> Any:
    """Read and parse a JSON file. Raise :class:`OSError` if it cannot be read, or the errors of :func:`parse_json`."""
    return parse_json(read_at_most(path, MAX_TEXT_BYTES))


def read_toml(path: Path) -> dict[str, Any]:
    """Read and parse a TOML file. Raise :class:`OSError` if it cannot be read, or the errors of :func:`parse_toml`."""
    return parse_toml(read_at_most(path, MAX_TOML_BYTES))


def _parsed(text: Any, max_bytes: int, marks: tuple[Any, Any], parse: Callable[[], Any]) -> Any:
    if len(text) > max_bytes:
        raise ValueError(f"the text is longer than {max_bytes:,} bytes")
    if sum(map(text.count, marks)) > MAX_CONTAINERS:
        raise ValueError(f"the text has more than {MAX_CONTAINERS:,} objects and arrays")
    too_deep = ValueError(f"the values are nested more than {MAX_DEPTH} levels deep")
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
    """Raised when a zip archive contains too many files or may be a zip bomb."""


def open_zip(content: bytes, max_bytes: int) -> zipfile.ZipFile:
    """Open a zip archive in memory for reading.

    Raises:
        UnpackedSizeError: the unpacked files have more than ``max_bytes``, the compression ratio is implausible, or
            the archive has more than :data:`MAX_ZIP_ENTRIES` files.
        zipfile.BadZipFile: the content is not a zip archive.
    """
    # Entries are counted before they are parsed, because parsed entries take much more memory than the file.
    if content.count(b"PK\1\2") > MAX_ZIP_ENTRIES:
        raise UnpackedSizeError(f"the archive has more than {MAX_ZIP_ENTRIES:,} files")
    archive = zipfile.ZipFile(io.BytesIO(content))
    _check_unpacked_size(archive, len(content), max_bytes, MAX_COMPRESSION_RATIO)
    return archive


def check_zip_file(path: Path, max_bytes: int, max_ratio: int = MAX_COMPRESSION_RATIO) -> None:
    """Check the unpacked size of a zip archive on disk. Raise the same errors as :func:`open_zip`."""
    with zipfile.ZipFile(path) as archive:
        _check_unpacked_size(archive, path.stat().st_size, max_bytes, max_ratio)


def _check_unpacked_size(archive: zipfile.ZipFile, packed_bytes: int, max_bytes: int, max_ratio: int) -> None:
    if len(archive.infolist()) > MAX_ZIP_ENTRIES:
        raise UnpackedSizeError(f"the archive has more than {MAX_ZIP_ENTRIES:,} files")
    # zipfile never unpacks more bytes than an archive declares.
    total = sum(info.file_size for info in archive.infolist())
    if total > min(max_bytes, max(MAX_SMALL_BYTES, max_ratio * packed_bytes)):
        raise UnpackedSizeError(f"the archive unpacks from {packed_bytes:,} to {total:,} bytes and may be a zip bomb")
