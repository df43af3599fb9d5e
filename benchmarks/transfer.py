"""Measure transfer learning from a person detection model with five images per class.

    python benchmarks/transfer.py --work FOLDER

MLPerf Tiny's person detection model (vww_96.h5) is trained on sign digits with 5 images per class, and compared with
the same architecture with random weights. The persons in the training, validation and test sets are different. The best
epoch is chosen on the validation images (2 per class), and the test images are used once. The measurement is repeated
with three selections of persons and one seed each. Data is read from $EDGEREC_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, signs_by_person

from edgerec import Recipe, fit

TRAIN, VALIDATE = 5, 2
COMMON: dict[str, Any] = {"data.input_size": 96, "train.batch_size": 10, "train.epochs": 60}
VARIANTS: dict[str, dict[str, Any]] = {
    "from vww_96.h5": {"model.arch": "backbone", "train.learning_rate": 0.01, "transfer.unfreeze": 0.0},
    "from scratch": {"model.arch": "mobilenet_v1", "model.width": 0.25, "train.learning_rate": 0.003},
}


def write_small_dataset(work: Path, number: int) -> Path:
    """Write sign digits of selected persons as train/, val/ and test/; half of the persons are in the test set."""
    folder = work / f"few-signs-{number}"
    if folder.is_dir():
        return folder
    signs = signs_by_person(work)
    people = np.random.default_rng(number).permutation(sorted({path.name[:10] for path in signs.glob("*/*")}))
    half, quarter = len(people) // 2, 3 * len(people) // 4
    partial = work / f".few-signs-{number}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for part, part_people, most in (
        ("test", people[:half], 10**9),
        ("train", people[half:quarter], TRAIN),
        ("val", people[quarter:], VALIDATE),
    ):
        for sign in sorted(path.name for path in signs.iterdir()):
            own = [path for person in part_people for path in sorted((signs / sign).glob(f"{person}_*"))][:most]
            (partial / part / sign).mkdir(parents=True)
            for path in own:
                shutil.copyfile(path, partial / part / sign / path.name)
    partial.rename(folder)
    return folder


def main() -> None:
    """Print top-1 of both models for each selection, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    accuracies: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(3):
        for variant, changes in VARIANTS.items():
            weights = {"model.weights": str(data_folder() / "vww_96.h5")} if "vww" in variant else {}
            recipe = Recipe().override(
                {"data.source": str(write_small_dataset(work, number)), "seed": number} | COMMON | changes | weights
            )
            run = fit(recipe, work / "runs" / f"few-{number}-{changes['model.arch']}", overwrite=True)
            accuracies[variant].append(run.metrics["accuracy"])
            row = {
                "selection": number,
                "variant": variant,
                "val": run.metrics["val_accuracy"],
                "test": run.metrics["accuracy"],
            }
            print(json.dumps(row), flush=True)
    means = {variant: round(100 * statistics.mean(values), 2) for variant, values in accuracies.items()}
    print(json.dumps({"mean_top1": means, "points": round(means["from vww_96.h5"] - means["from scratch"], 2)}))


if __name__ == "__main__":
    main()
