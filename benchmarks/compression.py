"""Measure the accuracy and size of compressed models on MNIST and CIFAR-10.

    python benchmarks/compression.py resnet8 small wide pruned mnist seeds third-party --work FOLDER

Data is read from $EDGEREC_TEST_DATA, or ../shared/data. Existing runs and variants in FOLDER are used, and an
unfinished training is resumed. docs/results.md describes which recipes were chosen by validation accuracy and which
were not tuned.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import data_folder, unpacked

from edgerec import Classifier, Recipe, adopt, fit, import_tflite, quantize, read_image
from edgerec.errors import GateError
from edgerec.importing.third_party_keras import read_third_party
from edgerec.train.run import Run

CIFAR10: dict[str, Any] = {
    "train.optimizer": "sgd",
    "train.learning_rate": 0.1,
    "train.batch_size": 128,
    "train.warmup_epochs": 1.0,
    "train.weight_decay": 0.005,
    "data.val_fraction": 0.05,
    "augment.flip": True,
    "augment.shift": 0.125,
    "augment.rotate_deg": 0.0,
    "augment.zoom": 0.0,
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
}
RECIPES: dict[str, dict[str, Any]] = {
    "resnet8": CIFAR10 | {"model.arch": "resnet8", "train.epochs": 120, "train.mixed_precision": True},
    "small": CIFAR10 | {"model.arch": "ds_resnet", "train.epochs": 60},
    # The small models reach 90 to 94 % on augmented training images and 87 to 88 % on validation images. This model is
    # larger, so it needs stronger augmentation.
    "wide": CIFAR10
    | {"model.arch": "se_resnet16", "train.epochs": 60, "augment.cutout": 0.375, "train.mixed_precision": True},
    "mnist": {"train.epochs": 30, "train.learning_rate": 0.001, "data.val_fraction": 0.05},
}
# A second training starts with the weights of the first one and half of its learning rate. The small model is also
# distilled from the wide one, which runs in bfloat16 because that is faster, except for depthwise convolutions.
RETRAINING_RATE: dict[str, Any] = {
    "train.learning_rate": 0.05,
    "transfer.frozen": 0.0,
    "transfer.unfreeze": 0.0,
    "transfer.rate": 1.0,
    "transfer.freeze_bn": False,
}
SECOND_STAGE: dict[str, dict[str, Any]] = {
    "small": RETRAINING_RATE | {"distill.weight": 0.9, "augment.cutout": 0.25, "train.mixed_precision": True},
    "wide": RETRAINING_RATE,
}
# The first convolution has only 288 of the 121,760 weights, so it is not pruned, as is usual (arXiv:1902.09574).
# 80 % of all weights are zero.
SPARSE_MNIST: dict[str, Any] = {"sparsity": 0.802, "skip": "conv2d", "epochs": 24, "learning_rate": 0.001}
# Architectures and seeds to compare PTQ with QAT. The schedules are short, so that two CPU cores are sufficient.
SEEDS = (0, 1, 2)
SHORT_CIFAR10 = CIFAR10 | {"train.epochs": 6, "train.mixed_precision": True}
COMPARED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "simple_cnn": {"model.arch": "simple_cnn", "train.learning_rate": 0.001, "train.optimizer": "adam"},
    "mobilenet_v1 0.25": {"model.arch": "mobilenet_v1", "model.width": 0.25, "train.learning_rate": 0.05},
    "resnet8": {"model.arch": "resnet8"},
}


def source(name: str, work: Path) -> str:
    """Return the location of a recipe's data."""
    return str(data_folder() / "mnist.npz") if name == "mnist" else str(unpacked("cifar10", work))


def trained(path: Path, changes: dict[str, Any]) -> Run:
    """Train the run at ``path``, or use the finished run."""
    if Run(path).finished:
        return Run(path)
    return fit(Recipe().override(changes), path, resume=Run(path).begun)


def variant(run: Run, name: str, method: str, **options: Any) -> dict[str, Any]:
    """Return the metrics of a variant, which is created if it does not exist."""
    if name not in run.variants():
        try:
            quantize(run, method, resume=True, **options)
        except GateError as error:
            print(f"gate: {error}", flush=True)
    report = run.variants()[name]
    float_form, float32_form, *_, form = report["forms"]
    return {
        "float_top1": float_form["top1"],
        "top1": form["top1"],
        "drop_points": round(report["drop_points"], 2),
        "agreement": form["agreement"],
        "agreements": report.get("agreements"),
        "bytes": form["size_bytes"],
        "gzip_bytes": form["gzip_bytes"],
        "float32_bytes": float32_form["size_bytes"],
        "sparsity": round(report["sparsity"], 3),
        "val_top1": report["val_top1"],
        "epochs": report["compress"]["epochs"],
    }


def first_stage(name: str, work: Path, seed: int = 0) -> Run:
    """Return the run of a recipe that starts with random weights."""
    folder = f"mnist-{seed}" if name == "mnist" else f"cifar10-{name}"
    return trained(work / "runs" / folder, RECIPES[name] | {"data.source": source(name, work), "seed": seed})


def cifar10(name: str, work: Path) -> dict[str, Any]:
    """Measure float and QAT int8 of one of edgerec's architectures on CIFAR-10."""
    run = first_stage(name, work)
    if name in SECOND_STAGE:
        changes = RECIPES[name] | SECOND_STAGE[name] | {"data.source": source(name, work)}
        changes["model.weights"] = str(run.path / "model.keras")
        if name == "small":
            changes["distill.teachers"] = str(first_stage("wide", work).path)
        run = trained(work / "runs" / f"cifar10-{name}-second", changes)
    return variant(run, "int8-qat", "qat")


def pruned(work: Path) -> dict[str, Any]:
    """Compare QAT of the ResNet8 with 50 % zeros and 5-bit weights with its dense int8 variant."""
    dense = cifar10("resnet8", work)
    run = Run(work / "runs" / "cifar10-resnet8")
    sparse = variant(run, "int8-pqat", "prune+qat", sparsity=0.5, weight_bits=5, epochs=20)
    return sparse | {"gzip_of_dense": round(sparse["gzip_bytes"] / dense["gzip_bytes"], 3)}


def mnist(work: Path) -> dict[str, Any]:
    """Measure simple_cnn with three seeds: float, QAT, and QAT of the 80 % pruned model, and the mean loss."""
    rows: dict[str, list[dict[str, Any]]] = {"qat": [], "prune+qat": []}
    for seed in SEEDS:
        run = first_stage("mnist", work, seed)
        rows["qat"].append(variant(run, "int8-qat", "qat", epochs=4))
        sparse = variant(run, "int8-pqat", "prune+qat", **SPARSE_MNIST)
        rows["prune+qat"].append(
            sparse | {"float32_over_gzip": round(sparse["float32_bytes"] / sparse["gzip_bytes"], 2)}
        )
        print(json.dumps({method: results[-1] for method, results in rows.items()}), flush=True)
    return {method: spread([row["drop_points"] for row in results]) for method, results in rows.items()}


def spread(values: list[float]) -> list[float]:
    """Return mean and standard deviation."""
    return [round(statistics.mean(values), 4), round(statistics.stdev(values), 4)]


def seeds(work: Path) -> dict[str, Any]:
    """Compare PTQ and QAT on three architectures with three seeds each, as means and standard deviations.

    ``gained_points`` is the accuracy of QAT minus the accuracy of PTQ for the same float model.
    """
    table: dict[str, Any] = {}
    for name, changes in COMPARED_ARCHITECTURES.items():
        rows: dict[str, list[dict[str, Any]]] = {"ptq": [], "qat": []}
        for seed in SEEDS:
            recipe = SHORT_CIFAR10 | changes | {"data.source": source(name, work), "seed": seed}
            run = trained(work / "runs" / f"seeds-{name.replace(' ', '-')}-{seed}", recipe)
            rows["ptq"].append(variant(run, "int8", "ptq", max_drop=100))
            rows["qat"].append(variant(run, "int8-qat", "qat", epochs=2, max_drop=100))
        table[name] = {
            method: {
                key: spread([row[key] for row in results]) for key in ("float_top1", "top1", "drop_points", "agreement")
            }
            for method, results in rows.items()
        }
        both = zip(rows["ptq"], rows["qat"], strict=True)
        table[name]["gained_points"] = spread([100 * (qat["top1"] - ptq["top1"]) for ptq, qat in both])
        print(json.dumps({name: table[name]}), flush=True)
    return table


def write_person_images(work: Path) -> Path:
    """Write unlabeled CIFAR-10 images: those in which MLPerf Tiny's model detects a person, and as many others."""
    folder = work / "persons-and-others"
    if not folder.is_dir():
        model = read_third_party(data_folder() / "vww_96.h5")
        paths_by_prediction: dict[bool, list[Path]] = {True: [], False: []}
        for class_folder in sorted(unpacked("cifar10", work).glob("*/*")):
            paths = sorted(class_folder.iterdir())
            images = np.stack([cv2.resize(read_image(path), (96, 96)) for path in paths])
            for path, scores in zip(paths, model.predict(images / np.float32(255), verbose=0), strict=True):
                paths_by_prediction[bool(scores.argmax())].append(path)
        partial = work / ".persons-and-others.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        persons, others = paths_by_prediction[True], paths_by_prediction[False]
        for path in persons + others[:: len(others) // len(persons)]:
            shutil.copyfile(path, partial / "-".join(path.parts[-3:]))
        partial.rename(folder)
    return folder


def third_party(work: Path) -> dict[str, Any]:
    """Quantize MLPerf Tiny's person detection model with PTQ and QAT, and run Coral's MobileNet on an image of a cat.

    There are no labeled images for the first model, so its top-1 is the agreement with its own float predictions.
    """
    run = Run(work / "runs" / "third-party-vww_96")
    if not run.finished:
        labels = work / "vww_labels.txt"
        labels.write_text("no person\nperson\n")
        network = data_folder() / "vww_96.h5"
        run = adopt(network, str(write_person_images(work)), run.path, normalize="unit", labels=labels, overwrite=True)
    bundle = work / "third-party-mobilenet_v1"
    mobilenet = data_folder() / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"
    import_tflite(mobilenet, bundle, labels=data_folder() / "imagenet_labels.txt", overwrite=True)
    cat = Classifier.open(bundle).classify(read_image(data_folder() / "cat_720p.jpg"))
    return {
        "vww_96.h5 ptq": variant(run, "int8", "ptq"),
        "vww_96.h5 qat": variant(run, "int8-qat", "qat"),
        mobilenet.name: {"cat_720p.jpg": cat.label, "score": round(cat.score, 3)},
    }


def main() -> None:
    """Print one JSON object for each benchmark."""
    benchmarks = {"pruned": pruned, "mnist": mnist, "seeds": seeds, "third-party": third_party}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="+", choices=("resnet8", "small", "wide", *benchmarks))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.benchmarks:
        figures = benchmarks[name](arguments.work) if name in benchmarks else cifar10(name, arguments.work)
        print(json.dumps({name: figures}, indent=1), flush=True)


if __name__ == "__main__":
    main()
