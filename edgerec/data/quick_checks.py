"""Run quick checks of a data set at the start of training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgerec.data.checks import FEW, UNBALANCED
from edgerec.data.dataset import Dataset
from edgerec.data.near_duplicates import NEAR_LEVELS, Pairs, confirmed, distances, thumbnails
from edgerec.data.split import Split

Indices = npt.NDArray[np.int64]

# Maximum number of validation and test images in the duplicate check.
HELD_OUT = 500
# Maximum number and maximum total size in bytes of the training images in the duplicate check.
TRAINING, SAMPLE_BYTES = 20_000, 1 << 28
# Number of training images that are compared at once.
CHUNK = 2048
# Minimum fraction of near-duplicates that triggers a warning.
DUPLICATES = 0.02
# Maximum number of classes to list in a warning.
NAMED = 3


def quick_warnings(dataset: Dataset, split: Split) -> Iterator[str]:
    """Yield warnings about too few images, class imbalance, and likely duplicates across splits.

    Args:
        dataset: the images.
        split: the split of ``dataset``.
    """
    if dataset.labels:
        yield from _class_sizes(dataset)
    if dataset.packed is None:  # Reading single images from TFRecord shards is slow.
        yield from _duplicates_across_splits(dataset, split)


def _class_sizes(dataset: Dataset) -> Iterator[str]:
    counts = np.bincount(dataset.classes, minlength=len(dataset.labels))
    if (few := np.flatnonzero(counts < FEW)).size:
        named = ", ".join(f"{dataset.labels[i]} {counts[i]}" for i in few[:NAMED])
        more = f" and {len(few) - NAMED} more classes" if len(few) > NAMED else ""
        yield f"too few images: {named}{more}, expected at least {FEW} per class, better 100: add images"
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[least] * UNBALANCED < counts[most]:
        yield (
            f"imbalance: class {dataset.labels[least]!r} has {counts[least]:,} images, {dataset.labels[most]!r} has "
            f"{counts[most]:,}: add images, or set train.class_weights=balanced"
        )


def _duplicates_across_splits(dataset: Dataset, split: Split) -> Iterator[str]:
    rng = np.random.default_rng(0)
    image_bytes = int(np.prod(dataset.images.shape[1:]))
    count = min(TRAINING, max(HELD_OUT, SAMPLE_BYTES // image_bytes))
    train = np.sort(rng.permutation(split.train)[:count])
    held_out = np.sort(rng.permutation(np.concatenate([split.val, split.test]))[:HELD_OUT])
    if not len(train) or not len(held_out):
        return
    pairs = _near_duplicate_pairs(dataset, held_out, train)
    fraction = len(pairs.first) / len(held_out)
    if fraction >= DUPLICATES:
        first, second = dataset.names[pairs.first[0]], dataset.names[pairs.second[0]]
        yield (
            f"likely duplicates across splits: {len(pairs.first)} of {len(held_out)} validation and test images "
            f"({fraction:.0%}) are near-duplicates of a training image, such as {first} and {second}, so that the "
            "measured accuracy is too high: keep related images together with data.group_by, or run edgerec data check"
        )


def _near_duplicate_pairs(dataset: Dataset, held_out: Indices, train: Indices) -> Pairs:
    held_out_thumbnails = thumbnails(dataset.images[held_out])
    best, partner = np.full(len(held_out), np.inf, np.float32), np.zeros(len(held_out), np.int64)
    for start in range(0, len(train), CHUNK):
        chunk = train[start : start + CHUNK]
        block = distances(held_out_thumbnails, thumbnails(dataset.images[chunk]))
        nearest = block.argmin(axis=1)
        levels = block[np.arange(len(held_out)), nearest]
        nearer = levels < best
        best[nearer], partner[nearer] = levels[nearer], chunk[nearest[nearer]]
    near = best <= NEAR_LEVELS
    return confirmed(Pairs(held_out[near], partner[near], best[near]), dataset.images)
