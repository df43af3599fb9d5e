"""Where the data files that come with edgerec lie: in the wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path


def shipped(folder: str) -> Path:
    """The folder ``targets`` or ``calibration``."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_shipped" / folder
    return installed if installed.is_dir() else package.parent / folder


def shipped_names(folder: str) -> list[str]:
    """The .toml files there, by name."""
    return sorted(path.stem for path in shipped(folder).glob("*.toml"))


def find_shipped(folder: str, name: str) -> Path | None:
    """The file of that name, or a person's own .toml; None when there is none."""
    if name.endswith(".toml"):
        return Path(name) if Path(name).is_file() else None
    return shipped(folder) / f"{name}.toml" if name in shipped_names(folder) else None
