"""Writing so that nothing is ever half there: write beside the destination, then rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgerec.errors import OutputExistsError


def sha256(content: bytes) -> str:
    """Hex SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` in one step that a reader sees whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write a file to; it takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".partial{path.suffix}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool, *, ours: bool = True) -> None:
    """Raise :class:`OutputExistsError` when ``path`` exists, is no empty folder, and may not be replaced.

    ``ours`` says that it is what edgerec writes there: nothing else is ever replaced.
    """
    if not (path.exists() or path.is_symlink()) or (path.is_dir() and not any(path.iterdir())):
        return
    if not ours:
        raise OutputExistsError(f"{path} holds something else, which --overwrite does not touch: choose another name")
    if not overwrite:
        raise OutputExistsError(f"{path} already exists: choose another name, or add --overwrite to replace it")


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside ``path`` to fill; it is renamed to ``path`` when the block ends well.

    A kill leaves ``path`` as it was. What is replaced is moved aside first and removed last: a kill between those
    two renames leaves the old one beside ``path``, as ``.NAME.….replaced``.
    """
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)
        _rename_over(partial, path, overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename_over(partial: Path, path: Path, overwrite: bool) -> None:
    refuse_existing(path, overwrite)  # someone else may have finished first
    if not path.exists():
        partial.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".replaced", dir=path.parent))
    path.rename(aside / path.name)
    try:
        partial.rename(path)
    except OSError:
        (aside / path.name).rename(path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)


def cache_folder() -> Path:
    """``$EDGEREC_CACHE``, or ``edgerec`` in the user's cache folder."""
    if folder := os.environ.get("EDGEREC_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgerec"
