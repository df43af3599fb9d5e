"""Find data files that are installed with edgerec, i.e. targets and calibration recipes."""

from __future__ import annotations

from pathlib import Path


def shipped(folder: str) -> Path:
    """Return the path of the data folder ``targets`` or ``calibration``.

    In an installed wheel, the folder is inside the package. In a checkout, it is at the top level.
    """
    package = Path(__file__).resolve().parent.parent
    installed = package / "_shipped" / folder
    return installed if installed.is_dir() else package.parent / folder


def shipped_names(folder: str) -> list[str]:
    """Return the sorted names of the .toml files in a data folder, without the suffix."""
    return sorted(path.stem for path in shipped(folder).glob("*.toml"))


def find_shipped(folder: str, name: str) -> Path | None:
    """Return the path of a built-in data file or a user's .toml file, or None if there is no such file.

    Args:
        folder: the data folder, ``targets`` or ``calibration``.
        name: name of a file in the data folder without its suffix, or path of a .toml file.
    """
    if name.endswith(".toml"):
        return Path(name) if Path(name).is_file() else None
    return shipped(folder) / f"{name}.toml" if name in shipped_names(folder) else None
