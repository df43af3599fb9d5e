"""Cutout, mixup and cutmix."""

from __future__ import annotations

from typing import Any

from edgerec.data.augmentation.draw import Stream, per_image, stream_seed, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require


def cutout(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Cover a random square of each image with the image's mean color (arXiv:1708.04552).

    The side of the square is the fraction ``section.cutout`` of the image's sides. The center of the square is inside
    the image, but the square can extend beyond the image.
    """
    tf = require("tensorflow")
    side = tf.fill([tf.shape(pixels)[0]], section.cutout)
    inside = _box(pixels, seed, (Stream.CUTOUT_RIGHT, Stream.CUTOUT_DOWN), side)
    covered = tf.cast(inside, tf.float32)
    return (1 - covered) * pixels + covered * tf.reduce_mean(pixels, axis=[1, 2], keepdims=True)


def mix(pixels: Any, soft_labels: Any, seed: Any, section: AugmentSection) -> tuple[Any, Any]:
    """Mix each image and its soft labels with the previous image of the batch.

    Mixup (arXiv:1710.09412) blends the two images. Cutmix (arXiv:1905.04899) pastes a box of the other image. If both
    are enabled, each image uses one of them at random.

    Args:
        pixels: float32 ``(batch, H, W, C)`` in 0…255.
        soft_labels: float32 ``(batch, classes)``.
        seed: integer tensor ``(2,)``.
        section: parameters of the augmentation.
    """
    tf = require("tensorflow")
    count = tf.shape(pixels)[0]
    uses_cutmix = uniform(count, seed, Stream.MIX_KIND, 0, 1) < 0.5
    if not (section.mixup and section.cutmix):
        uses_cutmix = tf.fill([count], bool(section.cutmix))
    fraction = _sample_beta(seed, tf.where(uses_cutmix, section.cutmix, section.mixup))
    inside = _box(pixels, seed, (Stream.MIX_RIGHT, Stream.MIX_DOWN), tf.sqrt(1 - fraction))
    weight = tf.where(per_image(uses_cutmix), 1 - tf.cast(inside, tf.float32), per_image(fraction))
    # The pasted box can extend beyond the image, so the mixing fraction is computed from its visible area.
    fraction = tf.reduce_mean(weight, axis=[1, 2, 3])[:, None]
    pixels = weight * pixels + (1 - weight) * tf.roll(pixels, 1, axis=0)
    soft_labels = fraction * soft_labels + (1 - fraction) * tf.roll(soft_labels, 1, axis=0)
    return tf.clip_by_value(pixels, 0.0, 255.0), soft_labels


def _sample_beta(seed: Any, alpha: Any) -> Any:
    tf = require("tensorflow")
    first, second = (
        tf.random.stateless_gamma(tf.shape(alpha), stream_seed(seed, stream), alpha)
        for stream in (Stream.MIX_ONE, Stream.MIX_OTHER)
    )
    return tf.math.divide_no_nan(first, first + second)


def _box(pixels: Any, seed: Any, streams: tuple[int, int], side: Any) -> Any:
    """Return a Boolean mask of a randomly placed box in each image.

    ``side`` is the side of the box as a fraction of the image's side, an array of shape ``(batch,)``.
    """
    tf = require("tensorflow")

    def interval(length: int, stream: int) -> Any:
        half = side * length / 2
        center = uniform(tf.shape(pixels)[0], seed, stream, 0, length)
        positions = tf.range(length, dtype=tf.float32)[None] + 0.5
        return (positions > (center - half)[:, None]) & (positions < (center + half)[:, None])

    columns, rows = interval(pixels.shape[2], streams[0]), interval(pixels.shape[1], streams[1])
    return rows[:, :, None, None] & columns[:, None, :, None]
