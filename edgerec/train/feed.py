"""Batches for training: shuffled, augmented, normalised; the same for the same seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.recipe import Recipe
from edgerec.contract.tensors import Normalise
from edgerec.data import Dataset
from edgerec.data.augment import augmenter, mixer
from edgerec.optional import require
from edgerec.train.keras import as_written

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Feed:
    """Training batches of a data set's part.

    ``batches`` yields float32 ``(batch_size, H, W, C)`` and int64 ``(batch_size,)``, ``steps`` of them an epoch;
    where the recipe mixes pictures, float32 ``(batch_size, classes)`` in the place of the classes.
    """

    batches: Any
    steps: int


def batch_size(wanted: int, count: int) -> int:
    """What is wanted for ``count`` pictures; for 0, a power of two of 16 to 128: small data needs many steps."""
    return min(wanted or int(2 ** np.clip(np.floor(np.log2(count / 50)), 4, 7)), count)


def training_feed(dataset: Dataset, part: npt.NDArray[np.int64], recipe: Recipe, *, first_epoch: int) -> Feed:
    """Endless epochs from ``first_epoch`` on. Order and augmentation follow from the seed and the epoch alone,
    so that a resumed run sees what an unbroken one would."""
    tf = require("tensorflow")
    size = recipe.train.batch_size
    steps = len(part) // size
    change, mix = augmenter(recipe.augment), mixer(recipe.augment)
    normalise = recipe.normalise

    def positions(epoch: Any) -> Any:
        order = tf.random.experimental.stateless_shuffle(tf.constant(part), seed=[recipe.seed, epoch])
        numbers = epoch * steps + tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((tf.reshape(order[: steps * size], [steps, size]), numbers))

    def gather(batch: Any, number: Any) -> tuple[Any, Any]:
        pixels = tf.numpy_function(lambda chosen: dataset.images[chosen], [batch], tf.uint8, stateful=False)
        pixels = tf.cast(tf.ensure_shape(pixels, [size, *dataset.images.shape[1:]]), tf.float32)
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), number])
        if change is not None:
            pixels = change(pixels, seed)
        classes = tf.gather(tf.constant(dataset.classes), batch)
        if mix is not None:
            pixels, classes = mix(pixels, tf.one_hot(classes, len(dataset.labels)), seed)
        return normalise.apply(pixels), classes

    batches = (
        tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        .flat_map(as_written(positions))
        .map(as_written(gather), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    return Feed(batches, steps)


def evaluation_feed(
    dataset: Dataset, part: npt.NDArray[np.int64], normalise: Normalise, *, shares: bool = False
) -> Any:
    """The part in its order, once: the same shapes and types as :class:`Feed`, the last batch smaller.

    ``shares`` gives classes as :class:`Feed` does where pictures are mixed.
    """
    tf = require("tensorflow")

    def gather(batch: Any) -> tuple[Any, Any]:
        pixels = tf.numpy_function(lambda chosen: dataset.images[chosen], [batch], tf.uint8, stateful=False)
        pixels = tf.cast(tf.ensure_shape(pixels, [None, *dataset.images.shape[1:]]), tf.float32)
        classes = tf.gather(tf.constant(dataset.classes), batch)
        return normalise.apply(pixels), tf.one_hot(classes, len(dataset.labels)) if shares else classes

    batches = tf.data.Dataset.from_tensor_slices(tf.constant(part)).batch(EVALUATION_BATCH)
    return batches.map(as_written(gather)).prefetch(2)
