"""Compare the default settings with the former defaults: int8 accuracy on the test images, file size and time.

    python benchmarks/defaults.py --work FOLDER [--data signs signs60 cifar10 mnist] [--settings former auto]

Each data set is trained and quantized twice in the same process: with the former defaults (``simple_cnn``, 15 epochs,
method ``qat``) and with ``arch = "auto"`` and method ``auto``. Both trainings use the same split. A measurement that
exists in FOLDER is not repeated; remove its .json file to repeat it. Data is read from $EDGEREC_TEST_DATA, or
../shared/data. To choose rules of ``auto``, use ``--validate``, which reports the validation accuracy and does not use
the test images. ``--set`` changes a key of the recipe, and ``--name`` is added to the name of the measurement.

- ``signs``: sign digits, split by person (15 % of the images are test images);
- ``signs60``: 60 images of each sign (from 60 persons) for training and validation, all other persons for the test set;
- ``cifar10``: CIFAR-10 as JPEG files; ``mnist``: MNIST.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, signs_by_person, unpacked

from edgerec import Recipe, Run, fit, quantize
from edgerec.recipe import parse_assignment
from edgerec.train.run import best_epoch

PERSON = "person_([0-9]+)"
SETTINGS: dict[str, dict[str, Any]] = {
    "former": {
        "model.arch": "simple_cnn",
        "model.width": 1.0,
        "model.weights": "none",
        "train.epochs": 15,
        "compress.method": "qat",
    },
    "auto": {"model.arch": "auto", "compress.method": "auto"},
}
COLUMNS = (
    *("data", "settings", "model", "epochs", "float top-1", "int8 top-1", "bytes"),
    *("train, s", "quantize, s", "train, CPU s", "quantize, CPU s"),
)


def write_sixty_each(work: Path, count: int = 60) -> Path:
    """Write the sign digits of ``count`` persons to train/ and of all other persons to test/; return the folder."""
    folder = work / f"sign-digits-{count}"
    if folder.is_dir():
        return folder
    images = sorted(signs_by_person(work).glob("*/*"))
    persons = np.random.default_rng(0).permutation(sorted({path.name[:10] for path in images}))
    partial = work / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    selected = set(persons[:count])
    for path in images:
        destination = partial / ("train" if path.name[:10] in selected else "test") / path.parent.name
        destination.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination / path.name)
    partial.rename(folder)
    return folder


def data_keys(name: str, work: Path) -> dict[str, Any]:
    """Return the recipe keys that select a data set."""
    match name:
        case "signs":
            return {"data.source": str(signs_by_person(work)), "data.group_by": PERSON}
        case "signs60":
            return {"data.source": str(write_sixty_each(work)), "data.group_by": PERSON}
        case "cifar10":
            return {"data.source": str(unpacked("cifar10", work))}
    return {"data.source": str(data_folder() / "mnist.npz")}


def trained(name: str, settings: str, changes: dict[str, Any], path: Path, work: Path, finish: bool) -> Run:
    """Return the run in ``path``. If the run does not exist, train it; if it is unfinished, resume it."""
    run = Run(path)
    if run.finished:
        return run
    recipe = Recipe().override(data_keys(name, work) | SETTINGS[settings] | changes)
    return fit(recipe, path, resume=run.begun, finish=finish)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its ended child processes, which hardly depends on other load."""
    return sum(os.times()[:4])


def measure(name: str, settings: str, run: Run, train_cpu_s: float) -> dict[str, Any]:
    """Quantize a trained run, and return its figures."""
    started, cpu_before = time.monotonic(), cpu_seconds()
    report = quantize(run, max_drop=100 if settings == "former" else None).to_dict()
    quantize_s = time.monotonic() - started
    float_form, *_, form = report["forms"]
    model = run.recipe.model
    width = "" if model.width == 1 else f" {model.width:g}"
    return {
        "data": name,
        "settings": settings,
        "model": f"{model.arch}{width}, {run.recipe.data.input_size} px",
        "epochs": run.metrics["epochs"],
        "test_images": report["images"],
        "val_top1": run.metrics["val_accuracy"],
        "float_top1": float_form["top1"],
        "int8_top1": form["top1"],
        "variant": report["variant"],
        "bytes": form["size_bytes"],
        "train_s": run.metrics["seconds"],
        "quantize_s": round(quantize_s, 1),
        "train_cpu_s": round(train_cpu_s, 1),
        "quantize_cpu_s": round(cpu_seconds() - cpu_before, 1),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the measurements as a Markdown table."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        cells = (
            f"{row['data']} ({row['test_images']:,} test images)",
            f"{row['settings']}, {row['variant']}",
            row["model"],
            row["epochs"],
            f"{row['float_top1']:.2%}",
            f"{row['int8_top1']:.2%}",
            f"{row['bytes']:,}",
            f"{row['train_s']:,.0f}",
            *(f"{row[key]:,.0f}" for key in ("quantize_s", "train_cpu_s", "quantize_cpu_s")),
        )
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run the missing measurements, and print a table, or a JSON object per training with ``--validate``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    names = ("signs", "signs60", "cifar10", "mnist")
    parser.add_argument("--data", nargs="+", default=names, choices=names)
    parser.add_argument("--settings", nargs="+", default=tuple(SETTINGS), choices=tuple(SETTINGS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    parser.add_argument("--name", default="", help="suffix of the run's name")
    parser.add_argument("--validate", action="store_true", help="report the validation accuracy only")
    arguments = parser.parse_args()
    folder = arguments.work / "defaults"
    folder.mkdir(parents=True, exist_ok=True)
    changes = dict(map(parse_assignment, arguments.set))
    rows = []
    for name in arguments.data:
        for settings in arguments.settings:
            path = folder / f"{name}-{settings}{arguments.name}"
            result = path.with_name(f"{path.name}.json")
            if arguments.validate:
                run = trained(name, settings, changes, path, arguments.work, finish=False)
                history = run.history()
                best = next(row for row in history if row["epoch"] == best_epoch(history))
                seconds = round(sum(row["seconds"] for row in history), 1)
                summary = {"run": path.name, "epochs": len(history), "best_epoch": best["epoch"], "seconds": seconds}
                print(json.dumps(summary | {"val_accuracy": best["val_accuracy"]}), flush=True)
                continue
            if not result.exists():
                cpu_before = cpu_seconds()
                run = trained(name, settings, changes, path, arguments.work, finish=True)
                result.write_text(json.dumps(measure(name, settings, run, cpu_seconds() - cpu_before), indent=1))
            rows.append(json.loads(result.read_text()))
    if rows:
        show(rows)


if __name__ == "__main__":
    main()
