"""Measure the accuracy of all steps on real data: float Keras, float32 TFLite, int8 TFLite, and the exported bundle.

    python benchmarks/accuracy.py mnist|signs|cifar10 --work FOLDER

Data is read from $EDGEREC_TEST_DATA, or ../shared/data. The recipes were chosen by validation accuracy. The test images
are used only here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import data_folder, signs_by_person, unpacked

from edgerec import Recipe, evaluate, export_bundle, fit, quantize, verify
from edgerec.tflite.flatbuffer import float_tensors, read_graph
from edgerec.train.run import Run

RECIPES: dict[str, dict[str, Any]] = {
    "mnist": {},  # the default recipe
    "signs": {
        "data.group_by": "person_([0-9]+)",
        "model.arch": "mobilenet_v1",
        "model.width": 0.25,
        "train.epochs": 60,
        "train.learning_rate": 0.002,
    },
    "cifar10": {
        "model.arch": "resnet8",
        "train.epochs": 8,
        "augment.flip": True,
        "augment.rotate_deg": 0.0,
        "compress.epochs": 2,
    },
}


def source(name: str, work: Path) -> str:
    """Return the location of a dataset."""
    if name == "mnist":
        return str(data_folder() / "mnist.npz")
    return str(signs_by_person(work) if name == "signs" else unpacked("cifar10", work))


def measure(name: str, work: Path) -> dict[str, Any]:
    """Train (or use an existing run), quantize and export, and return the accuracy of each form of the model."""
    recipe = Recipe().override({"data.source": source(name, work)} | RECIPES[name])
    path = work / "runs" / name
    run = Run(path) if Run(path).finished else fit(recipe, path, resume=(path / "recipe.toml").is_file())
    if "int8-qat" not in run.variants():
        quantize(run, "qat", max_drop=100)
    report = run.variants()["int8-qat"]
    bundle = export_bundle(
        run, "rpi", out=work / f"{name}-rpi", variant="int8-qat", max_drop=100, overwrite=True
    ).bundle
    graph = read_graph((run.variant("int8-qat") / "model.tflite").read_bytes())
    keras, float32, *_, int8 = report["forms"]
    return {
        "data": name,
        "arch": recipe.model.arch,
        "test_images": report["images"],
        "val_accuracy": run.metrics["val_accuracy"],
        "keras_top1": keras["top1"],
        "float32_tflite_top1": float32["top1"],
        "int8_top1": int8["top1"],
        "bundle_top1": evaluate(bundle, recipe.data.source).accuracy,
        "drop_points": round(report["drop_points"], 3),
        "agreement": int8["agreement"],
        "float32_bytes": float32["size_bytes"],
        "int8_bytes": int8["size_bytes"],
        "size_ratio": round(int8["size_bytes"] / float32["size_bytes"], 4),
        "tensors": len(graph.tensors),
        "float_tensors": len(float_tensors(graph)),
        "verified_bit_for_bit": verify(bundle).exact,
    }


def main() -> None:
    """Print one JSON object for each dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", choices=RECIPES)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.data:
        print(json.dumps(measure(name, arguments.work), indent=1), flush=True)


if __name__ == "__main__":
    main()
