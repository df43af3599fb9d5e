"""Batches for training: shuffled, augmented, normalised; the same for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.recipe import Recipe
from edgerec.contract.tensors import Normalise
from edgerec.data import Dataset
from edgerec.data.augment import augmenter, mixer
from edgerec.optional import require

Indices = npt.NDArray[np.int64]

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Places:
    """Which parts of each batch a process computes: ``count`` from ``first`` on, of ``total`` equal ones."""

    first: int = 0
    count: int = 1
    total: int = 1

    @property
    def numbers(self) -> range:
        """Of this process' parts."""
        return range(self.first, self.first + self.count)


WHOLE = Places()


def batch_size(wanted: int, count: int) -> int:
    """What is wanted for ``count`` pictures; for 0, a power of two of 16 to 128: small data needs many steps."""
    return min(wanted or int(2 ** np.clip(np.floor(np.log2(count / 50)), 4, 7)), count)


def steps_per_epoch(part: Indices, recipe: Recipe) -> int:
    """Steps that see each picture of the part once, but for fewer than a batch, which are others in every epoch."""
    return len(part) // recipe.train.batch_size


def training_feed(dataset: Dataset, part: Indices, recipe: Recipe, places: Places = WHOLE, *, first_epoch: int) -> Any:
    """Endless epochs of :func:`steps_per_epoch` batches, from ``first_epoch`` on, as a ``tf.data.Dataset``.

    Order and augmentation follow from the seed and the epoch alone, so that a resumed run sees what an unbroken one
    would, and several processes together see what one would.

    Returns:
        float32 ``(batch_size / places.total, H, W, C)`` and int64 ``(batch_size / places.total,)``, the parts of a
        batch one after the other; where the recipe mixes pictures, float32 ``(…, classes)`` in the place of classes.
    """
    tf = require("tensorflow")
    steps = steps_per_epoch(part, recipe)
    size = recipe.train.batch_size // places.total
    finish = _finisher(dataset, recipe)

    def positions(epoch: Any) -> Any:
        order = tf.random.experimental.stateless_shuffle(tf.constant(part), seed=[recipe.seed, epoch])
        batches = tf.reshape(order[: steps * places.total * size], [steps, places.total, size])
        own = batches[:, places.first : places.first + places.count]
        first = (epoch * steps + tf.range(steps, dtype=tf.int64)) * places.total
        numbers = first[:, tf.newaxis] + tf.constant([*places.numbers], tf.int64)
        return tf.data.Dataset.from_tensor_slices((tf.reshape(own, [-1, size]), tf.reshape(numbers, [-1])))

    def gather(batch: Any, number: Any) -> tuple[Any, Any]:
        pixels = tf.ensure_shape(_pixels(dataset, batch), [size, *dataset.images.shape[1:]])
        return finish(pixels, tf.gather(tf.constant(dataset.classes), batch), number)

    return (
        tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        .flat_map(positions)
        .map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def _finisher(dataset: Dataset, recipe: Recipe) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """What makes pixels and classes of a batch, with its number, to what the model takes."""
    tf = require("tensorflow")
    change, mix, normalise = augmenter(recipe.augment), mixer(recipe.augment), recipe.normalise

    def finish(pixels: Any, classes: Any, number: Any) -> tuple[Any, Any]:
        pixels = tf.cast(pixels, tf.float32)
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), number])
        if change is not None:
            pixels = change(pixels, seed)
        if mix is not None:
            pixels, classes = mix(pixels, tf.one_hot(classes, len(dataset.labels)), seed)
        return normalise.apply(pixels), classes

    return finish


def evaluation_steps(part: Indices, places: Places = WHOLE) -> int:
    """Batches of :func:`evaluation_feed` for each place."""
    return -(-len(part) // (places.total * EVALUATION_BATCH))


def evaluation_feed(
    dataset: Dataset, part: Indices, normalise: Normalise, places: Places = WHOLE, *, shares: bool = False
) -> Any:
    """Each picture of the part once, in batches of about the same size: shapes and types as :func:`training_feed`.

    ``shares`` gives classes as they are where pictures are mixed.
    """
    tf = require("tensorflow")
    steps = evaluation_steps(part, places)
    pieces = [np.array_split(part[number :: places.total], steps) for number in places.numbers]
    batches = [piece for step in zip(*pieces, strict=True) for piece in step]

    def gather(batch: Any) -> tuple[Any, Any]:
        pixels = tf.ensure_shape(_pixels(dataset, batch), [None, *dataset.images.shape[1:]])
        classes = tf.gather(tf.constant(dataset.classes), batch)
        return normalise.apply(tf.cast(pixels, tf.float32)), (
            tf.one_hot(classes, len(dataset.labels)) if shares else classes
        )

    rows = tf.RaggedTensor.from_row_lengths(np.concatenate(batches), [len(batch) for batch in batches])
    return tf.data.Dataset.from_tensor_slices(rows).map(gather).prefetch(2)


def _pixels(dataset: Dataset, batch: Any) -> Any:
    tf = require("tensorflow")
    return tf.numpy_function(lambda chosen: dataset.images[chosen], [batch], tf.uint8, stateful=False)
