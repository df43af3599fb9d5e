"""Write files and folders completely or not at all, and never over an input: write beside, then rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgerec.errors import OutputExistsError, OutputIsInputError, OutputNameError

# Suffixes of files that edgerec or other tools read. A folder with such a name would be mistaken for a file.
_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FILE_SUFFIXES = (
    *_IMAGE_SUFFIXES,
    *(".avi", ".mkv", ".mov", ".mp4", ".webm"),
    *(".h5", ".keras", ".npy", ".npz", ".pb", ".tflite"),
    *(".cc", ".csv", ".h", ".html", ".json", ".md", ".pdf", ".py", ".svg", ".toml", ".txt", ".xml", ".yaml", ".yml"),
    *(".tar", ".zip"),
)


def sha256(content: bytes) -> str:
    """Hex SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


def read_at_most(path: Path, limit_bytes: int) -> bytes:
    """Return a file's content; raises :class:`OSError` if it is larger, e.g. a device that never ends."""
    with path.open("rb") as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {limit_bytes >> 20} MiB", str(path))
    return content


def user_path(path: str | Path) -> Path:
    """Return ``path`` with a leading ``~`` replaced by the home folder, if the user has one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def checked_output(
    path: str | Path,
    inputs: Iterable[str | Path | Sequence[str | Path] | None] = (),
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    suffixes: Sequence[str] = (),
    folder: bool = False,
) -> Path:
    """Return the path to write to, with ``~`` expanded, after checking that nothing is destroyed by writing there.

    Args:
        path: path of the output as the user wrote it.
        inputs: files and folders that the same command reads, or sequences of them. None, empty strings, and names
            of things that do not exist as a path, such as ``digits`` or a URL, are ignored.
        data: inputs that are image folders. No output may be inside of them, where it would become part of the data.
        suffixes: suffixes that fit the format, e.g. ``(".png",)``; case does not matter. None given: any suffix.
        folder: the output is a folder; its name must not have the suffix of a file, except one of ``suffixes``.

    Raises:
        OutputNameError: the suffix does not fit the format.
        OutputIsInputError: the output is one of the inputs, by whatever name or link, or a folder that contains one;
            or it is an image in one of the input folders, or a folder in one of the data sets.
    """
    out = user_path(path)
    suffix = out.suffix.lower()
    if folder and suffix in _FILE_SUFFIXES and suffix not in suffixes:
        raise OutputNameError(f"{path} has the suffix of a file, but a folder is written there: choose another name")
    if not folder and suffixes and suffix not in suffixes:
        raise OutputNameError(f"{path} does not end in {' or '.join(filter(None, suffixes))}: choose another name")
    data_sets = _each(data)
    for given in (*(one for item in inputs for one in _each(item)), *data_sets):
        if not str(given) or not os.path.exists(source := user_path(given)):
            continue
        if _same(out, source) or (out.is_dir() and _inside(source, out)):
            raise OutputIsInputError(f"{path} would overwrite the input {given}: choose another output")
        if folder and given in data_sets and source.is_dir() and _inside(out, source):
            raise OutputIsInputError(
                f"{path} is inside the image folder {given}, where it would become part of the data: choose a folder "
                "outside of it"
            )
        if out.is_file() and suffix in _IMAGE_SUFFIXES and source.is_dir() and _inside(out, source):
            raise OutputIsInputError(f"{path} is an image in the input folder {given}: choose another output")
    return out


def _each(paths: str | Path | Sequence[str | Path] | None) -> Sequence[str | Path]:
    return (paths,) if isinstance(paths, str | Path) else paths or ()


def _same(path: Path, other: Path) -> bool:
    """Return whether two paths are the same file or folder, also through symbolic and hard links."""
    same = os.path.realpath(path) == os.path.realpath(other)
    return same or (os.path.exists(path) and os.path.samefile(path, other))


def _inside(path: Path, folder: Path) -> bool:
    # Path.resolve raises RuntimeError for a link to itself.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def write_file(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` in one step that a reader sees whole or not at all."""
    # Bytes of file names that are not UTF-8 become escapes such as \udce9, which JSON reads back as they were.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write a file to; it replaces ``path`` if the block succeeds."""
    path = user_path(path)
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
    """Raise :class:`OutputExistsError` if ``path`` exists, is not an empty folder, and must not be replaced.

    ``ours`` says whether the existing content was written by edgerec. Nothing else is ever replaced.
    """
    path = user_path(path)
    if not (path.exists() or path.is_symlink()) or (path.is_dir() and not any(path.iterdir())):
        return
    if not ours:
        raise OutputExistsError(f"{path} holds something else, which --overwrite does not touch: choose another name")
    if not overwrite:
        raise OutputExistsError(f"{path} already exists: choose another name, or add --overwrite to replace it")


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` to fill; it is renamed to ``path`` if the block succeeds.

    A kill leaves ``path`` as it was. What is replaced is moved aside first and removed last: a kill between those
    two renames leaves the old one beside ``path``, as ``.NAME.….replaced``.
    """
    path = user_path(path)
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
        return user_path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgerec"
