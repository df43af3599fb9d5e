"""Measure the effect of removing channels on the time, size and accuracy of a run's int8 model.

    python benchmarks/channels.py RUN [--parts 0.35 0.45 0.55] [--epochs 10] [--data …] [--max-drop 1] [--pythons …]

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
class Bench:
    """A run with its data, which can be fine-tuned."""

    run: Run
    dataset: Any
    split: Any
    tune: FineTune

    def int8(self, model: Any) -> bytes:
        """Return the int8 file by post-training quantization with the calibration of the run's recipe."""
        recipe = self.run.recipe
        drawn = calibration.draw(recipe.compress.calibration, self.dataset, self.split)
        content = to_int8(model, recipe.normalize.apply(calibration.pin_range(drawn.images).astype(np.float32)))
        check_int8(content, recipe.normalize)
        return content

    def opened(self, content: bytes) -> ImageModel:
        """Open the file in an interpreter with one thread."""
        return ImageModel(content, self.run.recipe.normalize, threads=1)

    def answers(self, scorer: Any, part: str) -> npt.NDArray[np.int64]:
        """Return the predicted class of each image of the subset."""
        best: npt.NDArray[np.int64] = scorer(self.dataset.images[self.split.part(part)], ignore).argmax(axis=1)
        return best

    def right(self, answers: npt.NDArray[np.int64], part: str) -> float:
        """Return the fraction of correct predictions."""
        return float(np.mean(answers == self.dataset.classes[self.split.part(part)]))

    def top1(self, scorer: Any, part: str) -> float:
        """Return the accuracy on the subset."""
        return self.right(self.answers(scorer, part), part)


def bench(arguments: argparse.Namespace) -> Bench:
    """Open the run and its data."""
    run = Run.open(arguments.run)
    changes: dict[str, Any] = {"compress.epochs": arguments.epochs}
    if arguments.learning_rate:
        changes["compress.learning_rate"] = arguments.learning_rate
    with CompressionContext.open(run, run.recipe.override(changes), arguments.data, ignore) as opened:
        return Bench(run, opened.dataset, opened.split, opened.fine_tune(Path(tempfile.mkdtemp())))


def row(given: Bench, part: float, model: Any, content: bytes, before: float) -> dict[str, Any]:
    """Return the properties of a model that need no time measurement."""
    return {
        "part": part,
        "parameters": int(model.count_params()),
        "macs": macs(model),
        "estimated_times_faster": round(cost(given.run.model()) / cost(model), 3),
        "int8_bytes": len(content),
        "val_before_tuning": round(before, 4),
        "val_float": round(given.top1(keras_scorer(model, given.run.recipe.normalize), "val"), 4),
        "val_int8": round(given.top1(tflite_scorer(given.opened(content)), "val"), 4),
    }


TIMES = """
import json, statistics, sys, time
import numpy as np
from edgerec.contract.tensors import Normalize
from edgerec.runtime.interpreter import fingerprint
from edgerec.runtime.image_model import ImageModel
normalize, rounds, pictures, *paths = sys.argv[1:]
pictures = np.load(pictures)
models = [ImageModel(open(path, "rb").read(), Normalize(*json.loads(normalize)), threads=1) for path in paths]
taken = [[] for _ in models]
for number in range(int(rounds)):
    for model, times in zip(models, taken):
        began = time.perf_counter()
        model.invoke(pictures[number % len(pictures)])
        times.append(time.perf_counter() - began)
print(json.dumps({"measured_on": fingerprint().to_dict(), "ms": [1e3 * statistics.median(times) for times in taken]}))
"""


def timed(python: str, given: Bench, contents: list[bytes], rounds: int) -> dict[str, Any]:
    """Return the median milliseconds of each file, measured alternately with the TFLite runtime of ``python``."""
    normalize = given.run.recipe.normalize
    with tempfile.TemporaryDirectory() as folder:
        pictures, paths = Path(folder) / "pictures.npy", [Path(folder) / f"{i}.tflite" for i in range(len(contents))]
        np.save(pictures, given.dataset.images[given.split.val[:256]])
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        command: list[str | Path] = [
            python,
            "-c",
            TIMES,
            json.dumps([normalize.mean, normalize.std]),
            str(rounds),
            pictures,
            *paths,
        ]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove each fraction of the channels, and compare the results."""
    given = bench(arguments)
    whole = given.run.model()
    normalize = given.run.recipe.normalize
    models, contents = [whole], [given.int8(whole)]
    rows = [row(given, 0.0, whole, contents[0], given.top1(keras_scorer(whole, normalize), "val"))]
    for part in arguments.parts:
        judged = shrink(whole, part, replace(given.tune, epochs=0), multiple=arguments.multiple)
        models.append(shrink(whole, part, given.tune, multiple=arguments.multiple))
        contents.append(given.int8(models[-1]))
        rows.append(row(given, part, models[-1], contents[-1], given.top1(keras_scorer(judged, normalize), "val")))
        print(json.dumps(rows[-1]), flush=True)
    times = [timed(python, given, contents, arguments.times) for python in arguments.pythons]
    for each in times:
        each["times_faster"] = [round(each["ms"][0] / ms, 3) for ms in each["ms"]]
        each["ms"] = [round(ms, 4) for ms in each["ms"]]
    faster = times[0]["times_faster"]
    least = rows[0]["val_int8"] - arguments.max_drop / 100
    chosen = max((i for i, line in enumerate(rows) if line["val_int8"] >= least), key=lambda i: faster[i])
    before = given.top1(tflite_scorer(given.opened(contents[0])), "test")
    answers = given.answers(tflite_scorer(given.opened(contents[chosen])), "test")
    after = given.right(answers, "test")
    floats = [given.answers(keras_scorer(model, normalize), "test") for model in (whole, models[chosen])]
    agreements = [round(float(np.mean(answers == found)), 4) for found in floats]
    return {
        "run": given.run.path.name,
        "arch": given.run.recipe.model.arch,
        "width": given.run.recipe.model.width,
        "epochs": arguments.epochs,
        "multiple": arguments.multiple,
        "rows": rows,
        "times": times,
        "chosen_part": rows[chosen]["part"],
        "test_int8_whole": before,
        "test_int8_chosen": after,
        "test_drop_points": round(100 * (before - after), 2),
        "agreement_with_whole_float": agreements[0],
        "agreement_with_own_float": agreements[1],
        "times_faster": [each["times_faster"][chosen] for each in times],
    }


def main() -> None:
    """Print a line for each fraction, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--parts", type=float, nargs="+", default=[0.35, 0.45, 0.55])
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
