"""Draw a contact sheet of a data set's images, optionally with augmented versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.data.augmentation.batch_augmenter import augmenter, mixer
from edgerec.data.dataset import Dataset, load
from edgerec.data.dataset_plots import ImageRow, image_table
from edgerec.data.tfrecord_reader import SPLITS
from edgerec.errors import RecipeError
from edgerec.recipe import AugmentSection, DataSection, Recipe
from edgerec.utils.atomic import checked_output, refuse_existing
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore

COLUMNS = 8
# Minimum number of rows on a contact sheet with augmented images.
MIN_ROWS = 8
# Maximum number of classes on a contact sheet.
MAX_CLASSES = 60


@dataclass(frozen=True)
class Sheet:
    """The path and contents of a contact sheet.

    Attributes:
        path: path of the PNG file.
        counts: dictionary that maps each label to its number of images.
        shown: number of classes on the sheet.
        augment: names and values of the enabled augmentations, or an empty dictionary if ``augment`` is false.
    """

    path: str
    counts: dict[str, int]
    shown: int
    augment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the contact sheet as a JSON-serializable dictionary."""
        return asdict(self)


def show_data(
    recipe: Recipe,
    out: str | Path,
    *,
    augment: bool = False,
    overwrite: bool = False,
    least_size_px: int = 8,
    listener: Listener = ignore,
) -> Sheet:
    """Draw a contact sheet with one row of images per class.

    Args:
        recipe: the recipe. Only its data, seed and augmentation are used.
        out: path of the PNG file.
        augment: show one training image per row, followed by augmented versions of this image.
        overwrite: replace an existing file.
        least_size_px: smallest input size of the architecture, in pixels.
        listener: called with the progress.

    Raises:
        EdgerecError: the data does not exist, all augmentations are disabled, or ``out`` exists.
    """
    path = checked_output(out, [recipe.data.source], suffixes=(".png",))
    refuse_existing(path, overwrite, replaceable=not path.is_dir())
    if augment and not recipe.augment.active:
        raise RecipeError(
            "There are no augmented images to show, because the recipe disables all augmentations: enable one, e.g. "
            "with augment.shift=0.1"
        )
    require("matplotlib")
    dataset, section = load(recipe.data, least_size_px=least_size_px, listener=listener)
    classes = range(min(len(dataset.labels), MAX_CLASSES))
    heading = f"{section.title}: {len(dataset.classes):,} images of {len(dataset.labels)} classes"
    if len(classes) < len(dataset.labels):
        heading += f" (the first {len(classes)} classes are shown)"
    if augment:
        rows, titles = _augmented_rows(dataset, classes, recipe)
        active = ", ".join(_setting(name, value) for name, value in recipe.augment.active.items())
        caption = f"Augmentation: {active}; seed {recipe.seed}. {_input_text(section)}"
    else:
        rows = [
            ImageRow(
                dataset.labels[i], _count_text(dataset, i), [dataset.images[p] for p in _sample(dataset, i, COLUMNS)]
            )
            for i in classes
        ]
        titles, caption = [], f"Evenly spaced sample of each class. {_input_text(section)}"
    image_table(rows, titles, heading, caption, path)
    counts = np.bincount(dataset.classes, minlength=len(dataset.labels))
    return Sheet(
        str(path),
        dict(zip(dataset.labels, map(int, counts), strict=True)),
        len(classes),
        recipe.augment.active if augment else {},
    )


def _setting(name: str, value: Any) -> str:
    return name if value is True else f"{name} {value:g}"


def _input_text(section: DataSection) -> str:
    color = "grayscale" if section.channels == 1 else "RGB"
    return f"Images are preprocessed to the model's input, {section.input_size}×{section.input_size} {color}."


def _count_text(dataset: Dataset, index: int) -> str:
    splits = dataset.splits[dataset.classes == index]
    if not np.any(dataset.splits != ""):
        return f"{len(splits):,} images"
    return "\n".join(f"{np.sum(splits == split):,} {split}" for split in SPLITS if split in dataset.splits)


def _sample(dataset: Dataset, index: int, count: int) -> npt.NDArray[np.int64]:
    """Select evenly spaced images of a class, preferably from the training set."""
    of_class = dataset.classes == index
    training = of_class & ((dataset.splits == "train") | (dataset.splits == ""))
    positions = np.flatnonzero(training if training.any() else of_class)
    return positions[np.linspace(0, len(positions) - 1, num=min(count, len(positions)), dtype=int)]


def _augmented_rows(dataset: Dataset, classes: Sequence[int], recipe: Recipe) -> tuple[list[ImageRow], list[str]]:
    images_per_class = max(1, MIN_ROWS // len(classes))
    positions = np.concatenate([_sample(dataset, i, images_per_class) for i in classes])
    versions = [_augment_batch(dataset, positions, recipe.augment, (recipe.seed, i)) for i in range(1, COLUMNS)]
    rows = []
    for row, position in enumerate(positions):
        index = dataset.classes[position]
        images = [dataset.images[position], *(images[row] for images, _ in versions)]
        notes = ["", *(_label_text(dataset, labels[row]) for _, labels in versions)] if recipe.augment.mixes else []
        rows.append(ImageRow(dataset.labels[index], _count_text(dataset, index), images, notes))
    return rows, ["original", *(f"augmented {number}" for number in range(1, COLUMNS))]


def _augment_batch(
    dataset: Dataset, positions: npt.NDArray[np.int64], section: AugmentSection, seed: tuple[int, int]
) -> tuple[list[Image], npt.NDArray[np.float32]]:
    tf = require("tensorflow")
    augment, mix = augmenter(section), mixer(section)
    pixels = tf.constant(dataset.images[positions], tf.float32)
    soft_labels = tf.one_hot(dataset.classes[positions], len(dataset.labels))
    if augment is not None:
        pixels = augment(pixels, tf.constant(seed, tf.int64))
    if mix is not None:
        pixels, soft_labels = mix(pixels, soft_labels, tf.constant(seed, tf.int64))
    return list(np.rint(np.asarray(pixels)).astype(np.uint8)), np.asarray(soft_labels)


def _label_text(dataset: Dataset, soft_labels: npt.NDArray[np.float32]) -> str:
    order = [i for i in np.argsort(-soft_labels, kind="stable")[:2] if soft_labels[i] >= 0.005]
    return "\n".join(f"{dataset.labels[i][:12]} {soft_labels[i]:.0%}" for i in order)
