"""Measure the effect of wrong calibration sets on the validation accuracy of an int8 model.

    python benchmarks/calibration.py RUN [--data FOLDER] [--images 1000] [--seeds 3]

Each wrong calibration set has 100 images. Sets of valid images are used as in `edgerec quantize`. Wrong value ranges
are passed directly to the converter, which edgerec never does. The score difference is the total
variation distance between the scores of the int8 model and the float model, averaged over the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgerec.compress import calibration
from edgerec.compress.accuracy_drop import parity_row
from edgerec.compress.calibration.sampling import SAMPLING_METHODS
from edgerec.compress.convert import to_int8
from edgerec.data import Dataset, Split
from edgerec.runtime.image_model import ImageModel
from edgerec.train.backend import prepare
from edgerec.train.metrics import ClassifierMetrics
from edgerec.train.run import Run
from edgerec.train.scorers import keras_scorer, tflite_scorer
from edgerec.utils.progress import ignore

# Function from images and a seed to the converter's input, float32 (N, H, W, C).
Case = Callable[[int], Any]


def cases(dataset: Dataset, split: Split, normalize: Any) -> Iterator[tuple[str, Case]]:
    """Return the calibration methods by name."""

    def sample(method: str, count: int, seed: int, indices: Any = split.train) -> Any:
        return dataset.images[SAMPLING_METHODS[method](dataset, indices, count, np.random.default_rng(seed))]

    def prepare_input(pixels: Any) -> Any:
        return normalize.apply(calibration.pin_range(pixels).astype(np.float32))

    for count in (10, 100, 500):
        yield f"stratified, {count}", lambda seed, n=count: prepare_input(sample("stratified", n, seed))
    for method in ("random", "diverse"):
        yield f"{method}, 100", lambda seed, m=method: prepare_input(sample(m, 100, seed))
    yield "red and blue swapped", lambda seed: prepare_input(sample("stratified", 100, seed)[..., ::-1])
    yield "half the contrast", lambda seed: prepare_input(sample("stratified", 100, seed) // 2)
    yield "one class only", lambda seed: prepare_input(sample("random", 100, seed, _one_class(dataset, split, seed)))
    yield "nearly identical images", lambda seed: prepare_input(_burst(sample("random", 1, seed)[0], 100, seed))
    yield "[0, 1] normalized again", lambda seed: normalize.apply(sample("stratified", 100, seed) / np.float32(255))
    yield "[-1, 1] for a [0, 1] model", lambda seed: sample("stratified", 100, seed) / np.float32(127.5) - 1
    yield "0 to 255, not normalized", lambda seed: sample("stratified", 100, seed).astype(np.float32)


def _one_class(dataset: Dataset, split: Split, index: int) -> Any:
    return split.train[dataset.classes[split.train] == index]


def _burst(image: Any, count: int, seed: int) -> Any:
    """Return a few seconds of video of one scene, with shifts of up to two pixels, noise and different exposures."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        move = np.array([[1, 0, rng.uniform(-2, 2)], [0, 1, rng.uniform(-2, 2)]], np.float32)
        moved = cv2.warpAffine(image, move, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE).reshape(image.shape)
        noisy = moved + rng.normal(0, 3, image.shape) + rng.uniform(-8, 8)
        frames.append(noisy.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def main() -> None:
    """Print the table, one row at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    recipe = run.recipe
    prepare(recipe.train, recipe.seed)
    dataset, split = run.data(arguments.data)
    indices = np.random.default_rng(0).permutation(split.val)[: arguments.images]
    images, classes = np.asarray(dataset.images[indices]), dataset.classes[indices]
    metrics = ClassifierMetrics(dataset.labels)
    model = run.model()
    reference = keras_scorer(model, recipe.normalize)(images, ignore)
    top1 = parity_row("float32", reference, reference, classes, metrics).top1
    print(f"{recipe.model.arch}, {len(indices)} validation images, float Keras {top1:.2%}\n")
    print("| calibration set | accuracy | agreement | score difference |\n|---|---|---|---|")
    for name, case in cases(dataset, split, recipe.normalize):
        rows = []
        for seed in range(arguments.seeds):
            content = to_int8(model, case(seed).astype(np.float32))
            scores = tflite_scorer(ImageModel(content, recipe.normalize))(images, ignore)
            row = parity_row(name, scores, reference, classes, metrics)
            difference = float(np.abs(scores - reference).sum(axis=1).mean()) / 2
            rows.append((row.top1, row.agreement, difference))
        print(f"| {name} | {' | '.join(_cell(values) for values in zip(*rows, strict=True))} |", flush=True)


def _cell(values: tuple[float, ...]) -> str:
    """Return the mean in percent, and the lowest and highest value if they differ."""
    low, mean, high = (f"{value:.1%}" for value in (min(values), float(np.mean(values)), max(values)))
    return mean if low == high else f"{mean} ({low[:-1]} to {high[:-1]})"


if __name__ == "__main__":
    main()
