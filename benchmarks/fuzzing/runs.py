"""Folders of runs and packs in which a file is damaged, replaced or missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

from edgerec.errors import EdgerecError
from fuzzing.isolation import Target
from fuzzing.mutate import damaged_bytes, damaged_json

# A separate process creates the valid inputs, because a process that has used TensorFlow may hang after a fork.
_MAKE_RUN = """
from edgerec import Recipe, fit, quantize
recipe = Recipe().override({"data.source": "digits", "train.epochs": 1})
fit(recipe, sys.argv[1])
quantize(sys.argv[1], "ptq", max_drop=100)
"""
_MAKE_PACK = """
from edgerec import Recipe, pack_data
pack_data(Recipe().override({"data.source": "digits"}), sys.argv[1])
"""
_TEXTS = (
    *("", "[" * 100_000, '{"a":' * 50_000, "x = " + "[" * 3000 + "]" * 3000, "a" + ".b" * 3000 + " = 1", "null", "5"),
    *('{"a": NaN}', "\0", "\ufeff{}", "9" * 10_000, "[]", "{}", '"' + "x" * 3_000_000 + '"'),
)


def _started(code: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", f"import sys\n{code}", str(path)], check=True, capture_output=True)
    return path


def start_run(work: Path) -> Path:
    """Return a finished run with an int8 variant."""
    from edgerec import Run, diff_runs, list_runs  # noqa: F401

    return _started(_MAKE_RUN, work / "run")


def make_run(rng: Random, run: Path, folder: Path) -> tuple[Path, Path]:
    """Copy the run and damage one of its files; return the copy and the valid run."""
    copy = shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("plots", "checkpoints", "*.keras"))
    (copy / "model.keras").touch()
    files = [path for path in sorted(copy.rglob("*")) if path.suffix in (".json", ".toml", ".txt", ".csv")]
    _damage(rng, rng.choice(files))
    return copy, run


def use_run(runs: tuple[Path, Path], out: Path) -> None:
    """List the run together with the valid run, read all of its values, and compare the two runs."""
    from edgerec import Run, diff_runs, list_runs

    damaged, valid = runs
    list_runs(damaged.parent)
    run = Run.open(damaged)
    _ = run.recipe, run.labels, run.metrics, run.split_record, run.history(), run.comparison(), run.exports()
    run.shipped(run.variants())
    diff_runs(damaged, valid)
    diff_runs(valid, damaged)


def start_pack(work: Path) -> Path:
    """Create and return a valid pack."""
    from edgerec.data import load  # noqa: F401

    return _started(_MAKE_PACK, work / "pack")


def make_pack(rng: Random, pack: Path, folder: Path) -> Path:
    """Copy the pack and damage one of its files. In most cases, update the digest of the manifest."""
    from edgerec.data.tfrecord_reader import manifest_digest

    copy = shutil.copytree(pack, folder / "pack")
    path = copy / rng.choice(("pack.json", "pack.json", rng.choice(sorted(file.name for file in copy.iterdir()))))
    _damage(rng, path)
    if path.name == "pack.json" and path.is_file() and path.stat().st_size < 10 << 20 and rng.random() < 0.8:
        try:
            about = json.loads(path.read_bytes())
            path.write_text(json.dumps(about | {"digest": manifest_digest(about)}))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            pass
    return copy


def use_pack(path: Path, out: Path) -> None:
    """Load the pack and read all of its images."""
    from edgerec.data import load
    from edgerec.recipe import DataSection

    dataset, _ = load(DataSection(source=str(path)))
    if dataset.packed is None:
        raise EdgerecError("it was not read as a pack")
    dataset.packed.verify()
    _ = list(dataset.names[:3]), dataset.images[0], dataset.images[-5:]


def _damage(rng: Random, path: Path) -> None:
    """Change the content of a file, or replace it, e.g. with a folder or a link."""
    content = path.read_bytes()
    kind = rng.choice(("value",) * 6 + ("bytes",) * 3 + ("text", "text", "remove", "folder", "loop", "long"))
    if kind == "value" and path.suffix == ".json":
        path.write_bytes(damaged_json(rng, json.loads(content)))
    elif kind in ("value", "bytes"):
        path.write_bytes(damaged_bytes(rng, content))
    elif kind == "text":
        path.write_text(rng.choice(_TEXTS))
    elif kind == "long":
        os.truncate(path, 5 << 30)
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path.name)


RUNS = Target(start_run, make_run, use_run, memory_bytes=1 << 30)
PACKS = Target(start_pack, make_pack, use_pack, memory_bytes=1 << 30)
