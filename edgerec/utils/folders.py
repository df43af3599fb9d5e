"""List the contents of folders, skipping hidden files and system files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edgerec.errors import DataError

# Operating systems, network drives and programs create these files and folders next to images.
# The names are in lowercase. Names that begin with a dot, such as ._a.jpg, are always hidden.
SYSTEM_NAMES = frozenset(
    (
        *("__macosx", "__pycache__", "icon\r", "network trash folder", "temporary items"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "lost.dir", "found.000"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@tmp", "@sharebin"),
        *("lost+found", "__thumbs", "_thumbnails"),
    )
)

# Suffixes of image files, including formats that edgerec cannot decode, in lowercase.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".jp2"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".avif", ".heic", ".heif", ".jxl", ".dcm", ".exr", ".hdr"),
    )
)


def is_hidden(name: str) -> bool:
    """Return whether a name belongs to a hidden file or to a system file such as Thumbs.db."""
    return name.startswith((".", "~$")) or name.casefold() in SYSTEM_NAMES


def may_be_image(path: Path) -> bool:
    """Return whether a file could be an image: its suffix is that of an image format, or it has none."""
    return not path.suffix or path.suffix.lower() in IMAGE_SUFFIXES


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders directly in ``folder``, sorted by name. Hidden and system folders are skipped.

    Raises:
        DataError: the folder cannot be read.
    """
    return [path for path in _entries(folder) if path.is_dir()]


def visible_files(folder: Path, *, below: bool = False) -> list[Path]:
    """Return the files in ``folder``, sorted by path. Hidden and system files and folders are skipped.

    Args:
        folder: the folder to list.
        below: whether to include the files in all subfolders. Symbolic links to folders are not followed.

    Raises:
        DataError: a folder cannot be read.
    """
    return sorted(_walk(folder)) if below else [path for path in _entries(folder) if path.is_file()]


def _walk(folder: Path) -> Iterator[Path]:
    for path in _entries(folder):
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _entries(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be read ({error.strerror}): "
            "check its permissions with ls -ld, or remove it from the data"
        ) from None
    return [folder / name for name in sorted(names) if not is_hidden(name)]
