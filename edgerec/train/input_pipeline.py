"""Create batches of images for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import Normalize
from edgerec.data import Dataset
from edgerec.data.augmentation.batch_augmenter import augmenter, mixer
from edgerec.data.split import Indices
from edgerec.data.tfrecord_reader import Packed
from edgerec.models import reconstructs
from edgerec.recipe import Recipe
from edgerec.train.backend import without_autograph
from edgerec.utils.optional import require

EVALUATION_BATCH = 256
# Number of shards to read in parallel, and the size of each shard's read buffer in bytes.
OPEN_SHARDS, READ_BYTES = 8, 1 << 20
# Number of records to read from a shard at once.
BLOCK = 64
# Maximum size of the shuffle buffer for packed data, in bytes and in images.
BUFFER_BYTES, BUFFER_IMAGES = 64 << 20, 16384


@dataclass(frozen=True)
class Replicas:
    """This process's replicas (devices). Each replica computes an equal fraction of each batch.

    Attributes:
        first: index of this process's first replica, counted from 0 across all processes.
        count: number of replicas in this process.
        total: number of replicas in all processes.
    """

    first: int = 0
    count: int = 1
    total: int = 1

    @property
    def numbers(self) -> range:
        """Indices of this process's replicas, counted from 0 across all processes."""
        return range(self.first, self.first + self.count)


ONE_REPLICA = Replicas()


def batch_size(requested: int, count: int) -> int:
    """Return the batch size for ``count`` training images, which never exceeds ``count``.

    If ``requested`` is 0, the batch size is a power of two from 16 to 128, depending on ``count``, so that epochs with
    few images have enough steps.
    """
    return min(requested or int(2 ** np.clip(np.floor(np.log2(count / 50)), 4, 7)), count)


def steps_per_epoch(part: Indices, recipe: Recipe) -> int:
    """Return the number of training steps per epoch for the images with the indices ``part``.

    The last incomplete batch of an epoch is omitted. The omitted images differ in each epoch.
    """
    return len(part) // recipe.train.batch_size


def training_batches(
    dataset: Dataset, part: Indices, recipe: Recipe, replicas: Replicas = ONE_REPLICA, *, first_epoch: int
) -> Any:
    """Return an infinite ``tf.data.Dataset`` with :func:`steps_per_epoch` batches per epoch.

    The order of the images and the augmentation depend only on the seed and the epoch. A resumed run therefore gets
    the same batches as an uninterrupted run, and several processes together get the same images as a single process.

    Args:
        dataset: the images.
        part: indices of the training images in the dataset, ``(N,)``.
        recipe: the resolved recipe.
        replicas: the devices of this process.
        first_epoch: number of the first epoch, counted from 0.

    Returns:
        Batches ``(pixels, classes)``: float32 ``(batch_size / replicas.total, H, W, C)`` and int64
        ``(batch_size / replicas.total,)``. In each step, the dataset yields one batch for each device. With mixup or
        cutmix, ``classes`` contains soft labels, float32 ``(…, classes)``. With ``train.class_weights = "balanced"``, a
        third element contains the weight of each image, float32 ``(…,)``; see :func:`class_weights`.
    """
    tf = require("tensorflow")
    steps = steps_per_epoch(part, recipe)
    size = recipe.train.batch_size // replicas.total
    finish = batch_finisher(dataset, recipe, class_weights(dataset, part, recipe))
    if dataset.packed is not None and len(part) == sum(shard.images for shard in dataset.packed.of("train")):
        return _batches_of_packed_data(dataset.packed, recipe, replicas, steps, finish, first_epoch)

    def positions(epoch: Any) -> Any:
        order = tf.random.experimental.stateless_shuffle(tf.constant(part), seed=[recipe.seed, epoch])
        batches = tf.reshape(order[: steps * replicas.total * size], [steps, replicas.total, size])
        own = batches[:, replicas.first : replicas.first + replicas.count]
        first = (epoch * steps + tf.range(steps, dtype=tf.int64)) * replicas.total
        numbers = first[:, tf.newaxis] + tf.constant([*replicas.numbers], tf.int64)
        return tf.data.Dataset.from_tensor_slices((tf.reshape(own, [-1, size]), tf.reshape(numbers, [-1])))

    def gather(batch: Any, number: Any) -> tuple[Any, ...]:
        pixels = tf.ensure_shape(_pixels(dataset, batch), [size, *dataset.images.shape[1:]])
        return finish(pixels, tf.gather(tf.constant(dataset.classes), batch), number)

    return _without_autotuning(
        tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        .flat_map(without_autograph(positions))
        .map(without_autograph(gather), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def _without_autotuning(batches: Any) -> Any:
    """Disable the autotuning thread of a ``tf.data.Dataset``, because ``model.fit`` would wait for the thread."""
    options = require("tensorflow").data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def _batches_of_packed_data(
    pack: Packed, recipe: Recipe, replicas: Replicas, steps: int, finish: Callable[..., Any], first_epoch: int
) -> Any:
    """Return the training batches for packed data, whose shards are read sequentially.

    The order of the shards changes in each epoch, and each process reads an equal number of images. Several shards are
    read at the same time, and their records are shuffled in a buffer of several thousand images.
    """
    tf = require("tensorflow")
    shards = pack.of("train")
    size = recipe.train.batch_size // replicas.total
    images_per_epoch = steps * size * replicas.count
    paths = tf.constant([pack.path(shard) for shard in shards])
    counts = tf.constant([shard.images for shard in shards], tf.int64)
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    image_bytes = int(np.prod(pack.preprocess.shape))
    window = size * int(max(4, min(BUFFER_BYTES // image_bytes, BUFFER_IMAGES) // size))

    def epoch_of(epoch: Any) -> Any:
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(shards)), seed=seed)
        sizes = tf.gather(counts, order)
        starts = tf.cumsum(sizes, exclusive=True)
        first = tf.constant(steps * size * replicas.first, tf.int64)
        skipped = tf.clip_by_value(first - starts, 0, sizes)
        remaining = tf.clip_by_value(first + images_per_epoch - starts, 0, sizes) - skipped
        return (
            tf.data.Dataset.from_tensor_slices((tf.gather(paths, order), skipped, remaining))
            .filter(without_autograph(lambda path, skip, take: take > 0))
            .interleave(
                without_autograph(open_shard),
                cycle_length=OPEN_SHARDS,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            .rebatch(window)
            .enumerate(epoch * -(-images_per_epoch // window))
            .map(without_autograph(shuffled))
            .unbatch()
            .enumerate(epoch * steps * replicas.count)
        )

    def open_shard(path: Any, skip: Any, take: Any) -> Any:
        # TensorFlow processes batches of records much faster than single records.
        return tf.data.TFRecordDataset(path, buffer_size=READ_BYTES).skip(skip).take(take).batch(BLOCK)

    def shuffled(number: Any, records: Any) -> Any:
        # tf.data's shuffle cannot be used, because its seed cannot depend on the epoch.
        order = tf.random.experimental.stateless_shuffle(
            tf.range(tf.shape(records)[0]), seed=tf.stack([tf.constant(recipe.seed, tf.int64), number])
        )
        return tf.reshape(tf.gather(records, order), [-1, size])

    def read(number: Any, records: Any) -> tuple[Any, ...]:
        parsed = tf.io.parse_example(records, features)
        pixels = tf.reshape(tf.io.decode_raw(parsed["image"], tf.uint8), [size, *pack.preprocess.shape])
        number = number // replicas.count * replicas.total + replicas.first + number % replicas.count
        return finish(pixels, parsed["label"], number)

    return _without_autotuning(
        tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        .flat_map(without_autograph(epoch_of))
        .map(without_autograph(read), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


@contextmanager
def reporting_damaged_records(dataset: Dataset) -> Iterator[None]:
    """Context manager that raises a :class:`DataError` if TensorFlow cannot read a record of packed data.

    All shards are then checked, so that the error can name the damaged record and its shard.
    """
    errors = require("tensorflow").errors
    try:
        yield
    except (errors.DataLossError, errors.InvalidArgumentError):
        # TensorFlow raises DataLossError for sequential reads, and InvalidArgumentError when reading single images.
        if dataset.packed is not None:
            dataset.packed.verify()
        raise


def class_weights(dataset: Dataset, part: Indices, recipe: Recipe) -> npt.NDArray[np.float32] | None:
    """Return each class's weight in the loss as an array, or None if all classes have the same weight.

    With ``train.class_weights = "balanced"``, the weight of a class is ``images / (classes · images of the class)``, so
    that all classes contribute equally to the loss of an epoch, and the mean weight of an image is 1.
    """
    if recipe.train.class_weights != "balanced" or reconstructs(recipe.model.arch):
        return None
    counts = np.bincount(dataset.classes[part], minlength=len(dataset.labels))
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def batch_finisher(
    dataset: Dataset, recipe: Recipe, weights: npt.NDArray[np.float32] | None
) -> Callable[[Any, Any, Any], tuple[Any, ...]]:
    """Return a function that augments and normalizes a batch, and adds sample weights.

    The function takes the pixels, the classes and the number of the batch. The batch number seeds the augmentation.
    """
    tf = require("tensorflow")
    change, mix, normalize = augmenter(recipe.augment), mixer(recipe.augment), recipe.normalize

    def finish(pixels: Any, classes: Any, number: Any) -> tuple[Any, ...]:
        pixels = tf.cast(pixels, tf.float32)
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), number])
        if change is not None:
            pixels = change(pixels, seed)
        if mix is not None:
            pixels, classes = mix(pixels, tf.one_hot(classes, len(dataset.labels)), seed)
        if weights is None:
            return normalize.apply(pixels), classes
        # With mixup or cutmix, the weight of an image is a weighted mean of the class weights.
        weight = tf.gather(weights, classes) if mix is None else tf.linalg.matvec(classes, weights)
        return normalize.apply(pixels), classes, weight

    return finish


def evaluation_steps(part: Indices, replicas: Replicas = ONE_REPLICA) -> int:
    """Return the number of batches that :func:`evaluation_batches` yields for each replica."""
    return -(-len(part) // (replicas.total * EVALUATION_BATCH))


def evaluation_batches(
    dataset: Dataset,
    part: Indices,
    normalize: Normalize,
    replicas: Replicas = ONE_REPLICA,
    *,
    soft_labels: bool = False,
) -> Any:
    """Return a ``tf.data.Dataset`` that yields each image once, in batches of nearly equal size.

    The images are those with the indices ``part``. The batches ``(pixels, classes)`` have the dtypes of
    :func:`training_batches` and up to :data:`EVALUATION_BATCH` images. With ``soft_labels``, the classes are one-hot
    encoded, float32 ``(batch, classes)``, because the loss for mixup and cutmix needs them in this form.
    """
    tf = require("tensorflow")
    steps = evaluation_steps(part, replicas)
    pieces = [np.array_split(part[number :: replicas.total], steps) for number in replicas.numbers]
    batches = [piece for step in zip(*pieces, strict=True) for piece in step]

    def gather(batch: Any) -> tuple[Any, Any]:
        pixels = tf.ensure_shape(_pixels(dataset, batch), [None, *dataset.images.shape[1:]])
        classes = tf.gather(tf.constant(dataset.classes), batch)
        return normalize.apply(tf.cast(pixels, tf.float32)), (
            tf.one_hot(classes, len(dataset.labels)) if soft_labels else classes
        )

    rows = tf.RaggedTensor.from_row_lengths(np.concatenate(batches), [len(batch) for batch in batches])
    return _without_autotuning(tf.data.Dataset.from_tensor_slices(rows).map(without_autograph(gather)).prefetch(2))


def _pixels(dataset: Dataset, batch: Any) -> Any:
    tf = require("tensorflow")
    return tf.numpy_function(lambda chosen: dataset.images[chosen], [batch], tf.uint8, stateful=False)
