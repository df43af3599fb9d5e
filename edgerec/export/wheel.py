"""Build a wheel from the installed edgerec package for inclusion in bundles.

The package ``build`` cannot be used, because it requires edgerec's source tree.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from edgerec._version import __version__
from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.utils.package_data import shipped

FOLDER = "wheels"
# These data folders are at the top level of a source tree, but inside an installed package.
_SHIPPED = ("targets", "calibration")
_EXCLUDED_SUFFIXES = frozenset({".pyc", ".pyo", ".orig", ".rej"})
_WHEEL = "Wheel-Version: 1.0\nGenerator: edgerec\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def bundled_wheel(target: Target) -> dict[str, bytes]:
    """Return edgerec's wheel, keyed by path in the bundle, or an empty dictionary if the target does not need it."""
    if not any("{edgerec}" in line for line in (*target.requirements, *target.commands)):
        return {}
    name, content = edgerec_wheel()
    return {f"{FOLDER}/{name}": content}


@cache
def edgerec_wheel() -> tuple[str, bytes]:
    """Build a wheel from the installed edgerec, and return its file name and contents.

    The wheel is built from the imported package and its installed metadata, so neither a source tree nor build tools
    are required. The build is reproducible: files are sorted and timestamps are fixed.

    Raises:
        TargetError: edgerec is not installed, or the installed metadata is for another version.
    """
    try:
        distribution = importlib.metadata.distribution("edgerec")
    except importlib.metadata.PackageNotFoundError:
        raise TargetError(
            "cannot build a wheel because edgerec is not installed: run pip install . in the source folder"
        ) from None
    metadata = distribution.read_text("METADATA") or ""
    if distribution.version != __version__ or not metadata:
        raise TargetError(
            f"cannot build a wheel because edgerec {__version__} is running, but the installed metadata is for version "
            f"{distribution.version}: run pip install again"
        )
    stem = f"edgerec-{distribution.version}"
    info = f"{stem}.dist-info"
    files = _package() | {
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": _WHEEL.encode(),
        f"{info}/entry_points.txt": (distribution.read_text("entry_points.txt") or "").encode(),
    }
    for file in distribution.files or ():
        if "licenses" in file.parts:
            files[f"{info}/licenses/{file.name}"] = file.read_binary()
    return f"{stem}-py3-none-any.whl", _packed(files, info)


def _package() -> dict[str, bytes]:
    """Return the contents of edgerec's modules and data files, keyed by path in the wheel."""
    files = _tree(Path(__file__).resolve().parent.parent, "edgerec")
    for name in _SHIPPED:
        files |= _tree(shipped(name), f"edgerec/_shipped/{name}")
    return files


def _tree(folder: Path, prefix: str) -> dict[str, bytes]:
    """Return the contents of a folder, keyed by path in the wheel, without caches and hidden files."""
    files = {}
    for path in folder.rglob("*"):
        relative = PurePosixPath(path.relative_to(folder).as_posix())
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not hidden and path.suffix not in _EXCLUDED_SUFFIXES:
            files[f"{prefix}/{relative}"] = path.read_bytes()
    return files


def _packed(files: Mapping[str, bytes], info: str) -> bytes:
    """Return a .zip archive of the files and RECORD, with fixed timestamps for a reproducible build."""
    record = "".join(f"{name},sha256={_digest(files[name])},{len(files[name])}\n" for name in sorted(files))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*sorted(files.items()), (f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode())]:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    """Return a SHA-256 digest in the RECORD format, i.e. as URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
