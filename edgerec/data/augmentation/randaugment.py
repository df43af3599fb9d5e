"""RandAugment (arXiv:1909.13719): apply a few of fourteen operations, drawn at random, with a common strength.

The operations and their maximum magnitudes are those of torchvision's ``RandAugment``. Geometric operations become
part of the single transform in ``geometry.py``. Each other operation is computed only for the images that use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from edgerec.data.augmentation import color
from edgerec.data.augmentation.draw import Stream, per_image, sign, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# Operation magnitudes at strength 1. SHIFT is a fraction of the image's side, and BITS is the number of bits removed.
SHEAR, SHIFT, TURN_DEG, ENHANCE, BITS = 0.3, 150 / 331, 30.0, 0.9, 4


class _Draw:
    """The randomly drawn type and sign (-1 or 1) of each image's ``number``-th operation."""

    def __init__(self, count: Any, seed: Any, number: int) -> None:
        tf = require("tensorflow")
        drawn = uniform(count, seed, Stream.RANDAUGMENT_KIND + number, 0, len(KINDS))
        self._kind = tf.minimum(tf.cast(drawn, tf.int32), len(KINDS) - 1)
        self.sign = sign(count, seed, Stream.RANDAUGMENT_SIGN + number)

    def is_kind(self, kind: str) -> Any:
        """Return for each image whether the operation ``kind`` was chosen, in a Boolean tensor."""
        return self._kind == KINDS.index(kind)

    def magnitude(self, kind: str, largest: float) -> Any:
        """Return ``largest`` with a random sign for each image whose operation is ``kind``, and 0 for all others."""
        tf = require("tensorflow")
        return tf.where(self.is_kind(kind), self.sign * largest, 0.0)


def geometric_operations(
    count: Any, rows: Any, columns: Any, seed: Any, section: AugmentSection
) -> Iterator[tuple[Any, ...]]:
    """Yield each geometric operation's coordinate map, a ``geometry.Affine``."""
    tf = require("tensorflow")
    strength = section.randaugment_strength
    x, y = (columns - 1) / 2, (rows - 1) / 2
    for number in range(section.randaugment):
        draw = _Draw(count, seed, number)
        angle = draw.magnitude("turn", strength * math.radians(TURN_DEG))
        a, e = tf.cos(angle), tf.cos(angle)
        b = draw.magnitude("shear_x", strength * SHEAR) - tf.sin(angle)
        d = draw.magnitude("shear_y", strength * SHEAR) + tf.sin(angle)
        right = draw.magnitude("right", strength * SHIFT) * columns
        down = draw.magnitude("down", strength * SHIFT) * rows
        yield a, b, x - a * x - b * y + right, d, e, y - d * x - e * y + down


def change_pixel_values(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Apply the operations that change pixel values to float32 pixels in 0…255."""
    tf = require("tensorflow")
    shape = pixels.shape
    for number in range(section.randaugment):
        draw = _Draw(tf.shape(pixels)[0], seed, number)
        for kind, operation in PIXEL_OPERATIONS.items():
            indices = tf.where(draw.is_kind(kind))
            sign = per_image(tf.gather_nd(draw.sign, indices))
            changed = operation(tf.gather_nd(pixels, indices), sign, section.randaugment_strength)
            pixels = tf.tensor_scatter_nd_update(pixels, indices, changed)
    return tf.ensure_shape(pixels, shape)


def _extrapolate(pixels: Any, base: Any, sign: Any, strength: float) -> Any:
    """Move pixels away from ``base`` (``sign`` 1) or toward it (``sign`` -1), like Pillow's ImageEnhance."""
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
    # Smooth with the 3×3 kernel of Pillow's ImageFilter.SMOOTH: ones with 5 in the center, divided by 13.
    # Compute the convolution by adding shifted slices, because TensorFlow cannot convolve an empty batch.
    padded = tf.pad(pixels, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    smooth = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels) / 13
    return _extrapolate(pixels, smooth, sign, strength)


def _posterize(pixels: Any, sign: Any, strength: float) -> Any:
    """Reduce the number of bits per channel (posterize)."""
    tf = require("tensorflow")
    step = 2.0 ** round(BITS * strength)
    return tf.floor(pixels / step) * step


def _solarize(pixels: Any, sign: Any, strength: float) -> Any:
    """Invert all pixel values above a threshold (solarize)."""
    tf = require("tensorflow")
    return tf.where(pixels >= 255 * (1 - strength), 255 - pixels, pixels)


def _autocontrast(pixels: Any, sign: Any, strength: float) -> Any:
    """Stretch each channel's values to the full range 0…255 (autocontrast)."""
    tf = require("tensorflow")
    low, high = (reduce(pixels, axis=[1, 2], keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    stretched = tf.clip_by_value((pixels - low) * (255 / tf.maximum(high - low, 1e-3)), 0.0, 255.0)
    return tf.where(high > low, stretched, pixels)


def _equalize(pixels: Any, sign: Any, strength: float) -> Any:
    """Equalize each channel's histogram."""
    tf = require("tensorflow")
    height, width, channels = pixels.shape[1:]
    count = tf.shape(pixels)[0]
    values = tf.cast(tf.round(tf.transpose(pixels, [0, 3, 1, 2])), tf.int32)
    values = tf.reshape(values, [count * channels, height * width])
    # Compute the histograms of all channels at once, using bins 256 i to 256 i + 255 for channel i.
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
# RandAugment's operations. Their order must not change, because it determines the augmentations that a seed produces.
KINDS = ("identity", "shear_x", "shear_y", "right", "down", "turn", *PIXEL_OPERATIONS)
