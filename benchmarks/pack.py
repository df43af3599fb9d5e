"""Measure packed data: training on a million images in constant memory, and the speed of the input pipeline.

    python benchmarks/pack.py million --work FOLDER [--images 1000000] [--steps 2000]
    python benchmarks/pack.py feed --work FOLDER

``million`` creates images by shifting those of MNIST, packs them, and trains for a fraction of an epoch in a separate
process. It measures the time to the first step and the memory over time, compared with a tenth of the images. ``feed``
alternately measures an epoch of the input pipeline alone and training steps of ResNet8 on CIFAR-10 images, from memory
and from shards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from augment import batch_reader, measure_alternately
from common import data_folder, unpacked

from edgerec import Recipe, pack_data
from edgerec.data import load, split_dataset
from edgerec.models import build
from edgerec.train.backend import keras
from edgerec.train.input_pipeline import steps_per_epoch, training_batches
from edgerec.train.training_step import compile_classifier

BATCH, STEPS = 128, 40
NO_AUGMENTATION = {f"augment.{key}": 0.0 for key in ("shift", "rotate_deg", "zoom", "brightness", "contrast")}
SETTINGS: dict[str, dict[str, Any]] = {"none": NO_AUGMENTATION, "default": {}}


def write_shifted_images(count: int, path: Path) -> None:
    """Write ``count`` images: MNIST is repeated, and each image is shifted randomly."""
    with np.load(data_folder() / "mnist.npz") as file:
        images, classes = file["x_train"], file["y_train"]
    rng = np.random.default_rng(0)
    indices = rng.permutation(np.arange(count) % len(images))
    shifted_images = images[indices]
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            chosen = np.flatnonzero(rng.integers(0, 25, count) == 0)
            shifted_images[chosen] = np.roll(shifted_images[chosen], (dy, dx), axis=(1, 2))
    np.savez(path, x_train=shifted_images, y_train=classes[indices])


def million(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of both sizes."""
    figures = {}
    for count in (arguments.images // 10, arguments.images):
        pack, source = arguments.work / f"pack-{count}", arguments.work / f"images-{count}.npz"
        if not pack.is_dir():
            write_shifted_images(count, source)
            start = time.monotonic()
            pack_data(Recipe().override({"data.source": str(source)}), pack)
            print(f"packed {count:,} in {time.monotonic() - start:.0f} s", file=sys.stderr)
            source.unlink()
        steps = ["--steps", str(arguments.steps), "--start", str(time.time())]
        command = [sys.executable, __file__, "train", "--work", str(pack), *steps]
        process = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        figures[f"{count:,}"] = json.loads(process.stdout)
    return figures


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on a pack for this many steps, and return the measurements."""
    recipe = Recipe().override({"data.source": str(arguments.work), "train.batch_size": BATCH})
    keras()
    dataset, section = load(recipe.data)
    recipe = Recipe(data=section).override({"train.batch_size": BATCH})
    split = split_dataset(dataset, section, 0)
    model = build(keras(), recipe.model, recipe.preprocess.shape, 10, recipe.normalize)
    compile_classifier(model, keras().optimizers.Adam(), 20)
    feed = training_batches(dataset, split.train, recipe, first_epoch=0)
    memory, first = [], []

    class MemoryMonitor(keras().callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            first.append(time.time() - arguments.start)
            resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory.append(resident_pages * 4096 / 1e6)

    model.fit(feed, steps_per_epoch=arguments.steps, epochs=1, verbose=0, callbacks=[MemoryMonitor()])
    tenth = max(1, len(memory) // 10)
    return {
        "training_images": len(split.train),
        "fraction_of_epoch": round(arguments.steps * BATCH / len(split.train), 3),
        "seconds_to_step_20": round(first[0], 1),
        "rss_mb": [round(value) for value in memory[::tenth]],
        "rss_end_to_a_tenth": round(memory[-1] / memory[tenth], 3),
    }


def feed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the input pipeline from memory and from shards, compared with the training step of ResNet8."""
    keras()  # configures TensorFlow, so it must run before TensorFlow is imported
    base = Recipe().override({"data.source": str(unpacked("cifar10", arguments.work)), "data.input_size": 32})
    pack = arguments.work / "pack-cifar10"
    if not pack.is_dir():
        pack_data(base, pack)
    functions = {}
    for name, source in (("memory", base.data.source), ("shards", str(pack))):
        dataset, section = load(base.override({"data.source": source}).data)
        indices = split_dataset(dataset, section, 0).train
        for key, setting in SETTINGS.items():
            recipe = Recipe(data=section).override({"train.batch_size": BATCH, "model.arch": "resnet8"} | setting)
            epoch = steps_per_epoch(indices, recipe)
            batches = training_batches(dataset, indices, recipe, first_epoch=0)
            functions[f"{name}, augmentation {key}"] = (batch_reader(batches, epoch), epoch * BATCH)
    recipe = Recipe(data=section).override({"train.batch_size": BATCH, "model.arch": "resnet8"} | NO_AUGMENTATION)
    model = build(keras(), recipe.model, recipe.preprocess.shape, 10, recipe.normalize)
    compile_classifier(model, keras().optimizers.Adam(), STEPS)
    single_batch = training_batches(dataset, indices, recipe, first_epoch=0).take(1).cache().repeat()
    functions["step"] = (lambda: model.fit(single_batch, steps_per_epoch=STEPS, epochs=1, verbose=0), STEPS * BATCH)
    speeds, _ = measure_alternately(functions, arguments.rounds)
    return {
        "images_per_second": speeds,
        "to_step": {name: round(speed / speeds["step"], 1) for name, speed in speeds.items() if name != "step"},
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=("million", "feed", "train"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--start", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    work = {"million": million, "feed": feed, "train": train}[arguments.benchmark]
    print(json.dumps(work(arguments), indent=1))


if __name__ == "__main__":
    main()
