"""Measure the cost of augmentation, compared with Keras' ImageDataGenerator and with a training step.

    python benchmarks/augment.py [--rounds 5] [--steps 40]

The settings are those of the tutorial: rotation 10°, zoom 0.1, shifts 0.1. The images are random, because the time does
not depend on their content. All variants run alternately in one process, and the results are medians of the rounds.
Only the ratios are meaningful. If other programs use the machine, CPU time is more stable than wall time.
ImageDataGenerator uses one CPU core, and the input pipeline uses all cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgerec import Recipe
from edgerec.models import build
from edgerec.train.backend import keras
from edgerec.train.input_pipeline import training_batches
from edgerec.train.training_step import compile_classifier

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
MODELS = {"mnist": "simple_cnn", "cifar10": "resnet8"}
NO_AUGMENTATION = dict.fromkeys(("shift", "rotate_deg", "zoom", "brightness", "contrast"), 0.0)
TUTORIAL = NO_AUGMENTATION | {"rotate_deg": 10.0, "zoom": 0.1, "shift": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": NO_AUGMENTATION,
    "tutorial": TUTORIAL,
    "default": {},
    "randaugment": NO_AUGMENTATION | {"flip": True, "randaugment": 2},
}
IMAGES, BATCH = 10000, 128


def random_dataset(name: str) -> Any:
    """Return the dataset attributes that the input pipeline needs, with random images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, *SHAPES[name]), np.uint8)
    return SimpleNamespace(images=images, classes=np.arange(IMAGES) % 10, labels=tuple("0123456789"), packed=None)


def recipe(name: str, setting: str) -> Recipe:
    """Return the recipe of a dataset with one of the augmentation settings."""
    values = {"model.arch": MODELS[name], "train.batch_size": BATCH, "data.input_size": SHAPES[name][0]}
    values |= {"data.channels": SHAPES[name][2]}
    return Recipe().override(values | {f"augment.{key}": value for key, value in SETTINGS[setting].items()})


def batches(data: Any, name: str, setting: str) -> Any:
    """Return the batches of the input pipeline."""
    return training_batches(data, np.arange(IMAGES), recipe(name, setting), first_epoch=0)


def measure_alternately(
    functions: dict[str, tuple[Callable[[], Any], int]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Run all functions once to warm up, then alternately in each round.

    Returns:
        For each function, the median of the images per second and the median CPU time per image in microseconds.
    """
    for run, _ in functions.values():
        run()
    speeds: dict[str, list[float]] = {name: [] for name in functions}
    costs: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, (run, count) in functions.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            speeds[name].append(count / (time.perf_counter() - start))
            costs[name].append((time.process_time() - start_cpu) * 1e6 / count)
    return tuple({name: round(median(values), 1) for name, values in samples.items()} for samples in (speeds, costs))


def batch_reader(batches: Any, steps: int) -> Callable[[], None]:
    """Return a function that reads batches from a new iterator, because an idle iterator would prefetch batches."""

    def run() -> None:
        iterator = iter(batches)
        for _ in range(steps):
            next(iterator)

    return run


def generate_batches(data: Any) -> Any:
    """Return the batches of Keras' ImageDataGenerator with the tutorial's settings."""
    generator = keras().preprocessing.image.ImageDataGenerator(
        rotation_range=10, zoom_range=0.1, width_shift_range=0.1, height_shift_range=0.1, rescale=1 / 255
    )
    return generator.flow(data.images.astype("float32"), data.classes, batch_size=BATCH)


def trainer(data: Any, name: str, setting: str | None, steps: int) -> Callable[[], None]:
    """Return a function that trains this many steps. Without a setting, the same batch is used in each step."""
    chosen_recipe = recipe(name, setting or "none")
    model = build(keras(), chosen_recipe.model, SHAPES[name], 10, chosen_recipe.normalize)
    compile_classifier(model, keras().optimizers.Adam(), steps)
    training_data = batches(data, name, setting or "none")
    if setting is None:
        training_data = training_data.take(1).cache().repeat()
    return lambda: model.fit(training_data, steps_per_epoch=steps, epochs=1, verbose=0)


def measure(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return all measurements for one image shape."""
    data = random_dataset(name)
    feeds = {f"feed {key}": (batch_reader(batches(data, name, key), steps), steps * BATCH) for key in SETTINGS}
    generator_steps = max(5, steps // 4)
    feeds |= {"ImageDataGenerator": (batch_reader(generate_batches(data), generator_steps), generator_steps * BATCH)}
    kinds = {"train": None, "train none": "none", "train tutorial": "tutorial", "train default": "default"}
    trained = {key: (trainer(data, name, setting, steps), steps * BATCH) for key, setting in kinds.items()}
    speeds, costs = (
        a | b for a, b in zip(measure_alternately(feeds, rounds), measure_alternately(trained, rounds), strict=True)
    )
    settings = ("tutorial", "default")
    return {
        "images_per_second": speeds,
        "cpu_us_per_image": costs,
        "feed_tutorial_to_generator": round(speeds["feed tutorial"] / speeds["ImageDataGenerator"], 1),
        "augmentation_fraction_of_epoch": {
            k: round(1 - speeds[f"train {k}"] / speeds["train none"], 3) for k in settings
        },
        "augmentation_fraction_of_cpu_time": {
            k: round(1 - costs["train none"] / costs[f"train {k}"], 3) for k in settings
        },
        f"feed_to_{MODELS[name]}_step": {
            k: round(speeds[f"feed {k}"] / speeds["train"], 1) for k in ("none", *settings)
        },
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="number of batches of 128 images in each measurement")
    arguments = parser.parse_args()
    keras()
    print(json.dumps({name: measure(name, arguments.rounds, arguments.steps) for name in SHAPES}, indent=1))


if __name__ == "__main__":
    main()
