"""Damaged zip files of bundles: damaged directories, zip bombs, and file names that lead out of the output folder."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from random import Random

from fuzzing import bundles
from fuzzing.isolation import FORBIDDEN_FOLDER, Target
from fuzzing.mutate import damaged_bytes

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_NAMES = (
    *("../x", "/tmp/x", "C:\\x", "..\\x", "a/../../x", "x\0y", "manifest.json", "model.tflite", "", "a/", "x" * 5000),
    *("__MACOSX/._manifest.json", "inner/manifest.json", f"../{FORBIDDEN_FOLDER}/x", "con"),
)
_BOMB_BYTES = 40 << 20


def make(rng: Random, bundle: Path, folder: Path) -> Path:
    """Write a zip file of the bundle with one kind of damage, and return its path."""
    files = {file.relative_to(bundle).as_posix(): file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
    manifest = json.loads(files["manifest.json"])
    path, method = folder / "bundle.zip", rng.choice(_METHODS)
    damage = rng.choice(("bytes", "bytes", "bytes", "bomb", "names", "many", "manifest", "link"))
    if damage == "manifest":
        manifest["metrics"] = {
            "x": rng.choice(([[]] * 2_000_000, "x" * (20 << 20), {str(n): {} for n in range(300_000)}))
        }
        files["manifest.json"] = json.dumps(manifest).encode()
    bombs = [f"zeros{number}" for number in range(rng.choice((1, 8)))] if damage == "bomb" else []
    manifest["files"] |= dict.fromkeys(bombs, hashlib.sha256(bytes(_BOMB_BYTES)).hexdigest())
    if bombs:
        files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name in bombs:
            archive.writestr(name, bytes(_BOMB_BYTES))
        if damage == "names":
            for name in rng.sample(_NAMES, 3):
                archive.writestr(zipfile.ZipInfo(name or "x"), b"x")
        elif damage == "many":
            for number in range(rng.choice((3000, 30_000))):
                archive.writestr(str(number), b"")
        elif damage == "link":
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, f"../../{FORBIDDEN_FOLDER}")
    content = path.read_bytes()
    if damage == "bytes":
        directory = content.index(b"PK\x01\x02")
        path.write_bytes(damaged_bytes(rng, content, within=((directory, len(content)), (0, 200))))
    return path


def use(path: Path, out: Path) -> None:
    """Open, list and copy the bundle, and write it to a folder."""
    from edgerec import Bundle

    bundle = Bundle.open(path)
    bundle.added()
    bundle.copy(out / "copy")
    Bundle.open(out / "copy")


TARGET = Target(bundles.start, make, use, memory_bytes=1 << 30)
