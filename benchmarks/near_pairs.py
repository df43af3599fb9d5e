"""Measure how the number of near-duplicate pairs per image in `edgerec data check` grows with the number of images.

    python benchmarks/near_pairs.py --work FOLDER [--images 2000 10000 50000] [--levels 4]

Images of MNIST, CIFAR-10 and the sign digits are compared with the same algorithm as in `edgerec data check`, with the
class as the only tag of an image. Data is read from $EDGEREC_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, signs_by_person, unpacked

from edgerec.data import load
from edgerec.data.near_duplicates import NEAR_LEVELS, confirmed, near_pairs, thumbnails
from edgerec.recipe import DataSection


def images_of(name: str, work: Path, count: int) -> tuple[Any, Any]:
    """Return images, uint8 ``(N, 32, 32, C)``, and their classes."""
    if name == "mnist":
        source = data_folder() / "mnist.npz"
    else:
        source = signs_by_person(work) if name == "signs" else unpacked("cifar10", work)
    dataset, _ = load(DataSection(source=str(source), input_size=32, fit="stretch"))
    some = np.sort(np.random.default_rng(0).permutation(len(dataset.classes))[:count])
    return np.asarray(dataset.images[some]), dataset.classes[some]


def measure(name: str, work: Path, count: int, levels: float) -> dict[str, Any]:
    """Count the near-duplicate pairs of one data set, and return the figures."""
    small, classes = images_of(name, work, count)
    start = time.perf_counter()
    pairs = near_pairs(thumbnails(small), [classes], levels)
    seconds = time.perf_counter() - start
    return {
        "data": name,
        "images": len(classes),
        "levels": levels,
        "pairs_per_image": round(len(pairs.first) / len(classes), 3),
        "confirmed_pairs": len(confirmed(pairs, small).first),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Print one JSON object for each data set and number of images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--data", nargs="+", default=["mnist", "signs", "cifar10"])
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 10000, 50000])
    parser.add_argument("--levels", type=float, default=NEAR_LEVELS, help="maximum distance of near-duplicates")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.data:
        for count in arguments.images:
            print(json.dumps(measure(name, arguments.work, count, arguments.levels)), flush=True)


if __name__ == "__main__":
    main()
