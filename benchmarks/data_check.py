"""Measure precision and recall of edgerec data check for label errors that were inserted on purpose.

    python benchmarks/data_check.py --work FOLDER [--images 10000] [--fraction 0.05]

A fraction of the labels of MNIST, CIFAR-10 and the sign digits is replaced by random other labels. Precision is the
fraction of the reported labels that were replaced. Recall is the fraction of the replaced labels that are reported. The
first reports are the ones that a user checks first. Reports on the original data count as false positives, although
some of these labels are really wrong. Data is read from $EDGEREC_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import data_folder, signs_by_person, unpacked

from edgerec.contract.image_decoding import Levels
from edgerec.data.label_errors import cross_validate
from edgerec.data.raw_dataset import Arrays, Files
from edgerec.data.readers import find
from edgerec.data.scan import scan
from edgerec.utils.progress import ignore


def load_thumbnails(name: str, work: Path, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], float]:
    """Return small images, their classes, and the number of images that were read per second."""
    if name == "mnist":
        dataset: Any = find(str(data_folder() / "mnist.npz"))
    else:
        dataset = find(str(signs_by_person(work) if name == "signs" else unpacked("cifar10", work)))
    indices = np.sort(np.random.default_rng(0).permutation(len(dataset.classes))[:count])
    if isinstance(dataset, Files):
        subset: Any = Files(
            dataset.root,
            tuple(dataset.paths[i] for i in indices),
            dataset.classes[indices],
            dataset.splits[indices],
            dataset.labels,
        )
    else:
        subset = Arrays(dataset.images[indices], dataset.classes[indices], dataset.splits[indices], dataset.labels)
    start = time.perf_counter()
    small = scan(subset, Levels(), ignore).thumbnails
    return small, subset.classes, len(indices) / (time.perf_counter() - start)


def measure(name: str, work: Path, count: int, fraction: float) -> dict[str, Any]:
    """Return the measurements of one dataset."""
    small, classes, speed = load_thumbnails(name, work, count)
    rng = np.random.default_rng(1)
    is_wrong = np.zeros(len(classes), bool)
    is_wrong[rng.permutation(len(classes))[: round(fraction * len(classes))]] = True
    replaced_labels = np.where(
        is_wrong, (classes + rng.integers(1, classes.max() + 1, len(classes))) % (classes.max() + 1), classes
    )
    start = time.perf_counter()
    predictions = cross_validate(small, replaced_labels, ignore)
    seconds = time.perf_counter() - start
    reported = predictions.label_errors(replaced_labels)
    original_predictions = cross_validate(small, classes, ignore)
    return {
        "data": name,
        "images": len(classes),
        "read_per_second": round(speed),
        "checked_per_second": round(len(classes) / seconds),
        "replaced_labels": int(is_wrong.sum()),
        "accuracy_of_the_quick_classifier": round(predictions.accuracy, 3),
        "reported": len(reported),
        "precision": round(float(is_wrong[reported].mean()), 3),
        "recall": round(float(is_wrong[reported].sum() / is_wrong.sum()), 3),
        "precision_of_the_first_20": round(float(is_wrong[reported[:20]].mean()), 3),
        "reported_fraction_of_original_labels": round(
            len(original_predictions.label_errors(classes)) / len(classes), 4
        ),
    }


def main() -> None:
    """Print one JSON object for each dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--images", type=int, default=10000, help="maximum number of images of a data set")
    parser.add_argument("--fraction", type=float, default=0.05, help="fraction of the labels that are replaced")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in ("mnist", "signs", "cifar10"):
        print(json.dumps(measure(name, arguments.work, arguments.images, arguments.fraction), indent=1), flush=True)


if __name__ == "__main__":
    main()
