"""Write files and folders atomically, and refuse output paths that would overwrite inputs."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from edgerec.errors import NoHomeError, OutputExistsError, OutputIsInputError, OutputNameError
from edgerec.utils.lock import try_lock, unlock

# The name of an output folder must not end in the suffix of a common file format.
_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FILE_SUFFIXES = (
    *_IMAGE_SUFFIXES,
    *(".avi", ".mkv", ".mov", ".mp4", ".webm"),
    *(".h5", ".keras", ".npy", ".npz", ".pb", ".tflite"),
    *(".cc", ".csv", ".h", ".html", ".json", ".md", ".pdf", ".py", ".svg", ".toml", ".txt", ".xml", ".yaml", ".yml"),
    *(".tar", ".zip"),
)
_LOCK = "edgerec-lock"
_READ_BYTES = 1 << 20


def sha256(content: bytes) -> str:
    """Return the SHA-256 digest of ``content`` as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_at_most(path: Path, limit_bytes: int) -> bytes:
    """Read a file. Raise :class:`OSError` if it is larger than ``limit_bytes``, or endless like ``/dev/zero``."""
    with path.open("rb") as file:
        # read() allocates a buffer of the requested size, and the limit can exceed the memory of a small device.
        expected_bytes = os.fstat(file.fileno()).st_size + 1
        parts = [file.read(min(expected_bytes, limit_bytes + 1))]
        left_bytes = limit_bytes + 1 - expected_bytes
        # A device such as /dev/zero has the size 0, and a file may grow.
        while left_bytes > 0 and len(parts[-1]) == expected_bytes:
            expected_bytes = min(left_bytes, _READ_BYTES)
            parts.append(file.read(expected_bytes))
            left_bytes -= expected_bytes
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"the file is larger than {limit_bytes >> 20} MiB", str(path))
    return content


def real_path(path: str | Path) -> Path:
    """Return the absolute path without symbolic links. Unlike :meth:`Path.resolve`, accept symlink loops."""
    return Path(os.path.realpath(path))


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def system_error(error: BaseException) -> OSError | None:
    """Return the disk error that caused a library's exception, e.g. a full disk, or None if there is no such error."""
    text = str(error)
    if "database or disk is full" in text:  # SQLite
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return next((OSError(code, os.strerror(code)) for code in _DISK_ERRORS if os.strerror(code) in text), None)


def user_path(path: str | Path) -> Path:
    """Replace a leading ``~`` in ``path`` with the home folder if it is known."""
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
    """Check that an output path has a valid suffix and does not overwrite an input, and expand ``~``.

    Args:
        path: output path as entered by the user.
        inputs: files and folders that the command reads, or sequences of these. None, empty strings and names that
            are not existing paths, such as ``digits`` or a URL, are ignored.
        data: image folders that the command reads. An output folder must not be inside one of them, because it would
            become part of the data.
        suffixes: allowed suffixes, e.g. ``(".png",)``, in upper or lower case. If empty, every suffix is allowed.
        folder: whether the output is a folder. The name of a folder must not have the suffix of a file, except one
            of ``suffixes``.

    Raises:
        OutputNameError: the suffix does not match the output format.
        OutputIsInputError: the output is the same file as an input (also through links), is a folder that contains an
            input, is an image in an input folder, or is a folder inside an image folder.
    """
    out = user_path(path)
    suffix = out.suffix.lower()
    if folder and suffix in _FILE_SUFFIXES and suffix not in suffixes:
        raise OutputNameError(f"{path} has a file suffix, but the output is a folder: choose a name without a suffix")
    if not folder and suffixes and suffix not in suffixes:
        raise OutputNameError(f"{path} must end in {' or '.join(filter(None, suffixes))}: choose another name")
    data_sets = _as_sequence(data)
    for input_path in (*(each for item in inputs for each in _as_sequence(item)), *data_sets):
        if not str(input_path) or not os.path.exists(source := user_path(input_path)):
            continue
        if _is_same_file(out, source) or (out.is_dir() and _inside(source, out)):
            raise OutputIsInputError(f"{path} would overwrite the input {input_path}: choose another output")
        if folder and input_path in data_sets and source.is_dir() and _inside(out, source):
            raise OutputIsInputError(
                f"{path} is inside the image folder {input_path}, where it would become part of the data: "
                "choose another folder"
            )
        if out.is_file() and suffix in _IMAGE_SUFFIXES and source.is_dir() and _inside(out, source):
            raise OutputIsInputError(
                f"{path} is an image in the input folder {input_path} and would be overwritten: choose another output"
            )
    return out


def _as_sequence(paths: str | Path | Sequence[str | Path] | None) -> Sequence[str | Path]:
    return (paths,) if isinstance(paths, str | Path) else paths or ()


def _is_same_file(path: Path, other: Path) -> bool:
    same = os.path.realpath(path) == os.path.realpath(other)
    return same or (os.path.exists(path) and os.path.samefile(path, other))


def _inside(path: Path, folder: Path) -> bool:
    return real_path(path).is_relative_to(real_path(folder))


def write_file(path: Path, content: bytes | str) -> None:
    """Write bytes or a string (as UTF-8) to a file atomically."""
    # JSON parsers can restore the escapes, e.g. \udce9, of file names that are not valid UTF-8.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, and rename the file to ``path`` if the ``with`` block succeeds."""
    path = user_path(path)
    with _workspace(path) as partial:
        yield partial
        with suppress(FileNotFoundError):
            partial.chmod(stat.S_IMODE(path.stat().st_mode))  # Keep the replaced file's permissions.
        os.replace(partial, path)


@contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder next to ``path``. The folder is deleted afterwards.

    The name of the folder is ``.NAME.….partial``. The folder contains a lock file, which is locked as long as the
    process exists, so that other processes can recognize and delete the temporary folders of killed processes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_abandoned_once(path.parent)
    folder, lock = _locked_folder(path)
    try:
        yield folder / path.name
    finally:
        unlock(folder / _LOCK, lock)
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(path: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent))
        try:
            lock = try_lock(folder / _LOCK)
        except FileNotFoundError:  # Another process has deleted the new folder.
            continue
        if lock is not None:
            return folder, lock


def delete_abandoned(parent: Path) -> None:
    """Delete temporary files that killed processes left in a folder."""
    with suppress(OSError):
        for folder in parent.glob(".*.partial/"):
            with suppress(OSError):
                if not (folder / _LOCK).exists():
                    folder.rmdir()  # rmdir() deletes only empty folders.
                elif (lock := try_lock(folder / _LOCK, certain=True)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)


# Listing a large folder is slow, so abandoned files are deleted only once per folder.
_delete_abandoned_once = lru_cache(maxsize=1024)(delete_abandoned)


def refuse_existing(path: Path, overwrite: bool, *, replaceable: bool = True) -> None:
    """Raise :class:`OutputExistsError` if ``path`` exists and must not be replaced. An empty folder may be replaced.

    Args:
        path: output path.
        overwrite: whether existing output of edgerec may be replaced.
        replaceable: whether the existing content is output of edgerec. Other content is never replaced.
    """
    path = user_path(path)
    if not (path.exists() or path.is_symlink()) or (path.is_dir() and not any(path.iterdir())):
        return
    if not replaceable:
        raise OutputExistsError(
            f"{path} was not written by this command, so --overwrite does not replace it: choose another name"
        )
    if not overwrite:
        raise OutputExistsError(f"{path} already exists: choose another name, or add --overwrite to replace it")


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder, and rename the folder to ``path`` if the ``with`` block succeeds.

    If the process is killed in the block, ``path`` does not change. An existing folder is first renamed to
    ``.NAME.….replaced`` in the same parent folder, and is deleted after the new folder is in place. If the process is
    killed between these two steps, the old folder remains under this name.
    """
    path = user_path(path)
    refuse_existing(path, overwrite)
    with _workspace(path) as partial:
        partial.mkdir()
        yield partial
        _rename_over(partial, path, overwrite)


def _rename_over(partial: Path, path: Path, overwrite: bool) -> None:
    refuse_existing(path, overwrite)  # Another process may have created the path in the meantime.
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
    """Return the cache folder: ``$EDGEREC_CACHE``, or ``edgerec`` in the user's cache folder.

    Raises:
        NoHomeError: the variable is not set and the user has no home folder, e.g. in a service or a container.
    """
    if folder := os.environ.get("EDGEREC_CACHE"):
        return user_path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "edgerec"
    try:
        return Path.home() / ".cache" / "edgerec"
    except RuntimeError:
        raise NoHomeError(
            "cannot find the cache folder, because this user has no home folder: set EDGEREC_CACHE to a writable folder"
        ) from None
