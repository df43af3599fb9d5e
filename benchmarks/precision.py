"""Measure how much faster a training step is with mixed precision than with float32 on this machine.

    python benchmarks/precision.py [--arch simple_cnn resnet14:1.5 …] [--input-size 32] [--steps 15]

Steps with 128 random images run alternately in both precisions in one process. Only the ratio of the medians is
meaningful.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgerec import Recipe
from edgerec.models import build
from edgerec.train.backend import keras, prepare
from edgerec.train.optimizer import optimizer
from edgerec.train.precision import in_training_precision
from edgerec.train.training_step import compile_classifier
from edgerec.utils.optional import require

BATCH, CLASSES = 128, 10
ARCHITECTURES = ("simple_cnn", "resnet8", "resnet14:1.5", "resnet14_wide", "resnet20", "vgg_small", "mobilenet_v1:0.25")


def stepper(name: str, mixed: bool, size: int) -> Callable[[], Any]:
    """Return a training step of an architecture ``NAME[:WIDTH]``, already traced and warmed up."""
    tf, (arch, _, width) = require("tensorflow"), name.partition(":")
    recipe = Recipe().override(
        {"model.arch": arch, "model.width": float(width or 1), "data.input_size": size, "data.channels": 3}
        | {"train.mixed_precision": mixed}
    )
    prepare(recipe.train, recipe.seed)
    model = in_training_precision(build(keras(), recipe.model, recipe.preprocess.shape, CLASSES, recipe.normalize))
    compile_classifier(model, optimizer("sgd", 0.01), 1)
    rng = np.random.default_rng(0)
    pixels = tf.constant(rng.random((BATCH, size, size, 3), np.float32))
    classes = tf.constant(rng.integers(0, CLASSES, BATCH))
    step: Callable[[], Any] = tf.function(lambda: model.train_step((pixels, classes)))
    for _ in range(3):
        step()
    return step


def main() -> None:
    """Print a JSON object for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--input-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=15)
    arguments = parser.parse_args()
    for name in arguments.arch:
        steppers = [stepper(name, mixed, arguments.input_size) for mixed in (False, True)]
        policy = keras().mixed_precision.global_policy().name
        durations: list[list[float]] = [[], []]
        for _ in range(arguments.steps):
            for step, times in zip(steppers, durations, strict=True):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
        float32, mixed = (1e3 * statistics.median(times) for times in durations)
        about = {"arch": name, "policy": policy, "float32_ms": round(float32, 1), "mixed_ms": round(mixed, 1)}
        print(json.dumps(about | {"times_faster": round(float32 / mixed, 2)}), flush=True)


if __name__ == "__main__":
    main()
