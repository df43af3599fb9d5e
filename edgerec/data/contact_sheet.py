"""A contact sheet of a data set, as the model sees it: its classes, and what augmentation makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.data.augment import augmenter, mixer
from edgerec.data.dataset import Dataset, load
from edgerec.data.dataset_plots import Row, picture_table
from edgerec.data.tfrecord_reader import SPLITS
from edgerec.errors import RecipeError
from edgerec.recipe import AugmentSection, DataSection, Recipe
from edgerec.utils.atomic import checked_output, refuse_existing
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore

COLUMNS = 8
# Rows that a sheet has where there are few classes, and at most.
FEWEST_ROWS, MOST_ROWS = 8, 60


@dataclass(frozen=True)
class Sheet:
    """What was drawn.

    Attributes:
        path: the PNG.
        counts: pictures of each class, by its label.
        shown: classes that are on the sheet.
        augment: the keys that were active, with their values; none without augmentation.
    """

    path: str
    counts: dict[str, int]
    shown: int
    augment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
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
    """Draw a contact sheet: a row per class with its count.

    Args:
        recipe: its data, its seed and its augmentation.
        out: the PNG.
        augment: each row is one training picture and what augmentation makes of it, as the model will see it.
        overwrite: replace the PNG.
        least_size_px: the architecture's smallest input.
        listener: told of the reading.

    Raises:
        EdgerecError: no such data, nothing to augment with, or ``out`` exists.
    """
    path = checked_output(out, [recipe.data.source], suffixes=(".png",))
    refuse_existing(path, overwrite, ours=not path.is_dir())
    if augment and not recipe.augment.active:
        raise RecipeError(
            "the recipe's [augment] turns everything off: there is nothing to show; set augment.shift=0.1"
        )
    require("matplotlib")
    dataset, section = load(recipe.data, least_size_px=least_size_px, listener=listener)
    classes = range(min(len(dataset.labels), MOST_ROWS))
    heading = f"{section.title}: {len(dataset.classes):,} pictures of {len(dataset.labels)} classes"
    if len(classes) < len(dataset.labels):
        heading += f", {len(classes)} of them shown"
    if augment:
        rows, titles = _augmented(dataset, classes, recipe)
        active = ", ".join(_setting(name, value) for name, value in recipe.augment.active.items())
        caption = f"augment: {active}; seed {recipe.seed}. {_seen(section)}"
    else:
        rows = [
            Row(dataset.labels[i], _counts(dataset, i), [dataset.images[p] for p in _some(dataset, i, COLUMNS)])
            for i in classes
        ]
        titles, caption = [], f"Evenly chosen in each class. {_seen(section)}"
    picture_table(rows, titles, heading, caption, path)
    counts = np.bincount(dataset.classes, minlength=len(dataset.labels))
    return Sheet(
        str(path),
        dict(zip(dataset.labels, map(int, counts), strict=True)),
        len(classes),
        recipe.augment.active if augment else {},
    )


def _setting(name: str, value: Any) -> str:
    return name if value is True else f"{name} {value:g}"


def _seen(section: DataSection) -> str:
    colours = "grey" if section.channels == 1 else "RGB"
    return f"{section.input_size}×{section.input_size} {colours}, as the model sees them."


def _counts(dataset: Dataset, index: int) -> str:
    """How many, and where the data has its own splits, how many in each."""
    mine = dataset.splits[dataset.classes == index]
    if not np.any(dataset.splits != ""):
        return f"{len(mine):,} pictures"
    return "\n".join(f"{np.sum(mine == split):,} {split}" for split in SPLITS if split in dataset.splits)


def _some(dataset: Dataset, index: int, count: int) -> npt.NDArray[np.int64]:
    """Up to ``count`` positions of a class, evenly chosen; of the training pictures where the data says which."""
    of_class = dataset.classes == index
    trained = of_class & ((dataset.splits == "train") | (dataset.splits == ""))
    positions = np.flatnonzero(trained if trained.any() else of_class)
    return positions[np.linspace(0, len(positions) - 1, num=min(count, len(positions)), dtype=int)]


def _augmented(dataset: Dataset, classes: Sequence[int], recipe: Recipe) -> tuple[list[Row], list[str]]:
    """A row per picture: as it is, then changed by one seed after the other."""
    each = max(1, FEWEST_ROWS // len(classes))
    chosen = np.concatenate([_some(dataset, i, each) for i in classes])
    versions = [_one_version(dataset, chosen, recipe.augment, (recipe.seed, number)) for number in range(1, COLUMNS)]
    rows = []
    for place, position in enumerate(chosen):
        index = dataset.classes[position]
        images = [dataset.images[position], *(images[place] for images, _ in versions)]
        notes = ["", *(_share_text(dataset, shares[place]) for _, shares in versions)] if recipe.augment.mixes else []
        rows.append(Row(dataset.labels[index], _counts(dataset, index), images, notes))
    return rows, ["as it is", *(f"augmented {number}" for number in range(1, COLUMNS))]


def _one_version(
    dataset: Dataset, chosen: npt.NDArray[np.int64], section: AugmentSection, seed: tuple[int, int]
) -> tuple[list[Image], npt.NDArray[np.float32]]:
    """The pictures changed as a batch of training is, and each one's shares of the classes."""
    tf = require("tensorflow")
    change, mix = augmenter(section), mixer(section)
    pixels = tf.constant(dataset.images[chosen], tf.float32)
    shares = tf.one_hot(dataset.classes[chosen], len(dataset.labels))
    if change is not None:
        pixels = change(pixels, tf.constant(seed, tf.int64))
    if mix is not None:
        pixels, shares = mix(pixels, shares, tf.constant(seed, tf.int64))
    return list(np.rint(np.asarray(pixels)).astype(np.uint8)), np.asarray(shares)


def _share_text(dataset: Dataset, shares: npt.NDArray[np.float32]) -> str:
    """The classes that a mixed picture shows, the largest first, a line each."""
    order = [i for i in np.argsort(-shares, kind="stable")[:2] if shares[i] >= 0.005]
    return "\n".join(f"{dataset.labels[i][:12]} {shares[i]:.0%}" for i in order)
