"""Augment images with RandAugment (arXiv:1909.13719).

A few of fourteen operations are drawn at random and applied to each image with the same strength. The operations and
their maximum magnitudes are those of torchvision's ``RandAugment``. Geometric operations become part of the single
transform in ``geometry.py``. Each other operation is computed only for the images that use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from edgerec.data.augmentation import color
from edgerec.data.augmentation.draw import Stream, per_image, sign, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# Magnitudes of RandAugment operations at a strength of 1.
SHEAR, SHIFT_FRACTION, TURN_DEG, ENHANCE, REMOVED_BITS = 0.3, 150 / 331, 30.0, 0.9, 4


class _RandomOperations:
    def __init__(self, count: Any, seed: Any, number: int) -> None:
        tf = require("tensorflow")
        drawn = uniform(count, seed, Stream.RANDAUGMENT_KIND + number, 0, len(KINDS))
        self._kind = tf.minimum(tf.cast(drawn, tf.int32), len(KINDS) - 1)
        self.sign = sign(count, seed, Stream.RANDAUGMENT_SIGN + number)

    def is_kind(self, kind: str) -> Any:
        return self._kind == KINDS.index(kind)

    def magnitude(self, kind: str, largest: float) -> Any:
        tf = require("tensorflow")
        return tf.where(self.is_kind(kind), self.sign * largest, 0.0)


def geometric_operations(
    count: Any, rows: Any, columns: Any, seed: Any, section: AugmentSection
) -> Iterator[tuple[Any, ...]]:
    """Yield the affine coordinate maps of the geometric operations."""
    tf = require("tensorflow")
    strength = section.randaugment_strength
    x, y = (columns - 1) / 2, (rows - 1) / 2
    for number in range(section.randaugment):
        draw = _RandomOperations(count, seed, number)
        angle = draw.magnitude("turn", strength * math.radians(TURN_DEG))
        a, e = tf.cos(angle), tf.cos(angle)
        b = draw.magnitude("shear_x", strength * SHEAR) - tf.sin(angle)
        d = draw.magnitude("shear_y", strength * SHEAR) + tf.sin(angle)
        right = draw.magnitude("right", strength * SHIFT_FRACTION) * columns
        down = draw.magnitude("down", strength * SHIFT_FRACTION) * rows
        yield a, b, x - a * x - b * y + right, d, e, y - d * x - e * y + down


def change_pixel_values(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Apply the operations that change pixel values, such as brightness and posterize.

    The pixels are float32 in 0…255.
    """
    tf = require("tensorflow")
    shape = pixels.shape
    for number in range(section.randaugment):
        draw = _RandomOperations(tf.shape(pixels)[0], seed, number)
        for kind, operation in PIXEL_OPERATIONS.items():
            indices = tf.where(draw.is_kind(kind))
            sign = per_image(tf.gather_nd(draw.sign, indices))
            changed = operation(tf.gather_nd(pixels, indices), sign, section.randaugment_strength)
            pixels = tf.tensor_scatter_nd_update(pixels, indices, changed)
    return tf.ensure_shape(pixels, shape)


def _extrapolate(pixels: Any, base: Any, sign: Any, strength: float) -> Any:
    """Increase or decrease the difference between ``pixels`` and ``base``, like Pillow's ImageEnhance."""
    tf = require("tensorflow")
    return tf.clip_by_value(base + (pixels - base) * (1 + sign * strength * ENHANCE), 0.0, 255.0)


def _brightness(pixels: Any, sign: Any, strength: float) -> Any:
    return _extrapolate(pixels, 0.0, sign, strength)


def _saturation(pixels: Any, sign: Any, strength: float) -> Any:
    return _extrapolate(pixels, color.luma(pixels), sign, strength)


def _contrast(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    return _extrapolate(pixels, tf.reduce_mean(color.luma(pixels), axis=[1, 2, 3], keepdims=True), sign, strength)


def _sharpness(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    # The image is smoothed with the kernel of Pillow's ImageFilter.SMOOTH.
    # Shifted slices are added, because TensorFlow cannot convolve an empty batch.
    padded = tf.pad(pixels, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    smooth = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels) / 13
    return _extrapolate(pixels, smooth, sign, strength)


def _posterize(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    step = 2.0 ** round(REMOVED_BITS * strength)
    return tf.floor(pixels / step) * step


def _solarize(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    return tf.where(pixels >= 255 * (1 - strength), 255 - pixels, pixels)


def _autocontrast(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    low, high = (reduce(pixels, axis=[1, 2], keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    stretched = tf.clip_by_value((pixels - low) * (255 / tf.maximum(high - low, 1e-3)), 0.0, 255.0)
    return tf.where(high > low, stretched, pixels)


def _equalize(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    height, width, channels = pixels.shape[1:]
    count = tf.shape(pixels)[0]
    values = tf.cast(tf.round(tf.transpose(pixels, [0, 3, 1, 2])), tf.int32)
    values = tf.reshape(values, [count * channels, height * width])
    # Channel i uses the bins 256 i to 256 i + 255, so that one call computes all histograms.
    bins = values + 256 * tf.range(count * channels)[:, None]
    total = count * channels * 256
    counts = tf.math.bincount(tf.reshape(bins, [-1]), minlength=total, maxlength=total)
    below = tf.cumsum(tf.reshape(tf.cast(counts, tf.float32), [count * channels, 256]), axis=1)
    lowest = tf.gather(below, tf.reduce_min(values, axis=1), batch_dims=1)[:, None]
    table = tf.math.divide_no_nan(below - lowest, height * width - lowest) * 255
    # Leave a channel unchanged if all of its values are equal.
    table = tf.where(lowest == height * width, tf.range(256, dtype=tf.float32)[None], table)
    spread = tf.gather(table, values, batch_dims=1)
    return tf.transpose(tf.reshape(spread, [count, channels, height, width]), [0, 2, 3, 1])


PIXEL_OPERATIONS: dict[str, Callable[[Any, Any, float], Any]] = {
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
# The order of the operations must not change, because it determines which augmentations a seed produces.
KINDS = ("identity", "shear_x", "shear_y", "right", "down", "turn", *PIXEL_OPERATIONS)
