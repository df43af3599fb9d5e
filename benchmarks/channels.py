"""Measure the effect of removing channels on the time, size and accuracy of a run's int8 model.

    python benchmarks/channels.py RUN [--fractions 0.35 0.45 0.55] [--epochs 10] [--data …] [--max-drop 1] [--pythons …]

The accuracy of the int8 files is measured on the validation images, which determine the chosen file: the fastest one
that loses no more than --max-drop points. The test images are used only once, for the original and the chosen model.
All files are timed alternately, image by image, in one process with one thread. Only the ratio of the medians is
meaningful. --pythons are Python interpreters of environments with a TFLite runtime and NumPy. Times are measured with
each of them, and the first determines the chosen file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress import calibration
from edgerec.compress.channel_selection import cost, macs
from edgerec.compress.channels import shrink
from edgerec.compress.context import CompressionContext
from edgerec.compress.convert import check_int8, to_int8
from edgerec.compress.finetune import FineTune
from edgerec.runtime.image_model import ImageModel
from edgerec.train.run import Run
from edgerec.train.scorers import keras_scorer, tflite_scorer
from edgerec.utils.progress import ignore


@dataclass(frozen=True)
class PreparedRun:
    """A run with its data and the settings for fine-tuning."""

    run: Run
    dataset: Any
    split: Any
    tune: FineTune

    def quantize(self, model: Any) -> bytes:
        """Quantize with PTQ and the calibration settings of the run's recipe, and return the int8 file."""
        recipe = self.run.recipe
        calibration_images = calibration.draw(recipe.compress.calibration, self.dataset, self.split)
        content = to_int8(
            model, recipe.normalize.apply(calibration.pin_range(calibration_images.images).astype(np.float32))
        )
        check_int8(content, recipe.normalize)
        return content

    def open_model(self, content: bytes) -> ImageModel:
        """Open the file in an interpreter with one thread."""
        return ImageModel(content, self.run.recipe.normalize, threads=1)

    def predict(self, scorer: Any, subset: str) -> npt.NDArray[np.int64]:
        """Return the predicted class of each image of the subset."""
        best: npt.NDArray[np.int64] = scorer(self.dataset.images[self.split.part(subset)], ignore).argmax(axis=1)
        return best

    def accuracy(self, predictions: npt.NDArray[np.int64], subset: str) -> float:
        """Return the fraction of correct predictions."""
        return float(np.mean(predictions == self.dataset.classes[self.split.part(subset)]))

    def top1(self, scorer: Any, subset: str) -> float:
        """Return the accuracy on the subset."""
        return self.accuracy(self.predict(scorer, subset), subset)


def open_run(arguments: argparse.Namespace) -> PreparedRun:
    """Open the run and its data."""
    run = Run.open(arguments.run)
    changes: dict[str, Any] = {"compress.epochs": arguments.epochs}
    if arguments.learning_rate:
        changes["compress.learning_rate"] = arguments.learning_rate
    with CompressionContext.open(run, run.recipe.override(changes), arguments.data, ignore) as opened:
        return PreparedRun(run, opened.dataset, opened.split, opened.fine_tune(Path(tempfile.mkdtemp())))


def model_figures(prepared: PreparedRun, fraction: float, model: Any, content: bytes, before: float) -> dict[str, Any]:
    """Return the size, cost and accuracy of a model."""
    return {
        "fraction": fraction,
        "parameters": int(model.count_params()),
        "macs": macs(model),
        "estimated_times_faster": round(cost(prepared.run.model()) / cost(model), 3),
        "int8_bytes": len(content),
        "val_before_tuning": round(before, 4),
        "val_float": round(prepared.top1(keras_scorer(model, prepared.run.recipe.normalize), "val"), 4),
        "val_int8": round(prepared.top1(tflite_scorer(prepared.open_model(content)), "val"), 4),
    }


TIMING_PROGRAM = """
import json, statistics, sys, time
import numpy as np
from edgerec.contract.tensors import Normalize
from edgerec.runtime.interpreter import fingerprint
from edgerec.runtime.image_model import ImageModel
normalize, rounds, images, *paths = sys.argv[1:]
images = np.load(images)
models = [ImageModel(open(path, "rb").read(), Normalize(*json.loads(normalize)), threads=1) for path in paths]
durations = [[] for _ in models]
for number in range(int(rounds)):
    for model, times in zip(models, durations):
        start = time.perf_counter()
        model.invoke(images[number % len(images)])
        times.append(time.perf_counter() - start)
milliseconds = [1e3 * statistics.median(times) for times in durations]
print(json.dumps({"measured_on": fingerprint().to_dict(), "ms": milliseconds}))
"""


def measure_times(python: str, prepared: PreparedRun, contents: list[bytes], rounds: int) -> dict[str, Any]:
    """Return the median milliseconds of each file, measured alternately with the TFLite runtime of ``python``."""
    normalize = prepared.run.recipe.normalize
    with tempfile.TemporaryDirectory() as folder:
        images, paths = Path(folder) / "images.npy", [Path(folder) / f"{i}.tflite" for i in range(len(contents))]
        np.save(images, prepared.dataset.images[prepared.split.val[:256]])
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        command: list[str | Path] = [
            python,
            "-c",
            TIMING_PROGRAM,
            json.dumps([normalize.mean, normalize.std]),
            str(rounds),
            images,
            *paths,
        ]
        root = Path(__file__).resolve().parents[1]
        process = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove each fraction of the channels, and compare the results."""
    prepared = open_run(arguments)
    original = prepared.run.model()
    normalize = prepared.run.recipe.normalize
    models, contents = [original], [prepared.quantize(original)]
    rows = [
        model_figures(prepared, 0.0, original, contents[0], prepared.top1(keras_scorer(original, normalize), "val"))
    ]
    for fraction in arguments.fractions:
        untuned = shrink(original, fraction, replace(prepared.tune, epochs=0), multiple=arguments.multiple)
        models.append(shrink(original, fraction, prepared.tune, multiple=arguments.multiple))
        contents.append(prepared.quantize(models[-1]))
        rows.append(
            model_figures(
                prepared, fraction, models[-1], contents[-1], prepared.top1(keras_scorer(untuned, normalize), "val")
            )
        )
        print(json.dumps(rows[-1]), flush=True)
    times = [measure_times(python, prepared, contents, arguments.times) for python in arguments.pythons]
    for timing in times:
        timing["times_faster"] = [round(timing["ms"][0] / ms, 3) for ms in timing["ms"]]
        timing["ms"] = [round(ms, 4) for ms in timing["ms"]]
    faster = times[0]["times_faster"]
    min_accuracy = rows[0]["val_int8"] - arguments.max_drop / 100
    chosen = max((i for i, line in enumerate(rows) if line["val_int8"] >= min_accuracy), key=lambda i: faster[i])
    before = prepared.top1(tflite_scorer(prepared.open_model(contents[0])), "test")
    predictions = prepared.predict(tflite_scorer(prepared.open_model(contents[chosen])), "test")
    after = prepared.accuracy(predictions, "test")
    floats = [prepared.predict(keras_scorer(model, normalize), "test") for model in (original, models[chosen])]
    agreements = [round(float(np.mean(predictions == float_predictions)), 4) for float_predictions in floats]
    return {
        "run": prepared.run.path.name,
        "arch": prepared.run.recipe.model.arch,
        "width": prepared.run.recipe.model.width,
        "epochs": arguments.epochs,
        "multiple": arguments.multiple,
        "rows": rows,
        "times": times,
        "chosen_fraction": rows[chosen]["fraction"],
        "test_int8_original": before,
        "test_int8_chosen": after,
        "test_drop_points": round(100 * (before - after), 2),
        "agreement_with_original_float": agreements[0],
        "agreement_with_own_float": agreements[1],
        "times_faster": [timing["times_faster"][chosen] for timing in times],
    }


def main() -> None:
    """Print a line for each fraction, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.35, 0.45, 0.55])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--multiple", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=0.0)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--times", type=int, default=2000)
    parser.add_argument("--data")
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], metavar="PYTHON")
    print(json.dumps(measure(parser.parse_args()), indent=1), flush=True)


if __name__ == "__main__":
    main()
