"""RandAugment (arXiv:1909.13719): a few changes per picture, drawn from fourteen, all of one strength.

The changes and their largest sizes are those of torchvision's ``RandAugment``. Each kind of change sees only the
pictures that drew it; moves become part of the one transform of geometry.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from edgerec.data.augmentation import colour
from edgerec.data.augmentation.draw import Name, per_picture, sign, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

SHEAR, SHIFT, TURN_DEG, ENHANCE, BITS = 0.3, 150 / 331, 30.0, 0.9, 4


class _Drawn:
    """What the pictures drew for their ``number``-th change: a kind, and up or down."""

    def __init__(self, count: Any, seed: Any, number: int) -> None:
        tf = require("tensorflow")
        drawn = uniform(count, seed, Name.RANDAUGMENT_KIND + number, 0, len(KINDS))
        self._kind = tf.minimum(tf.cast(drawn, tf.int32), len(KINDS) - 1)
        self.sign = sign(count, seed, Name.RANDAUGMENT_SIGN + number)

    def chose(self, kind: str) -> Any:
        """bool ``(batch,)``."""
        return self._kind == KINDS.index(kind)

    def size(self, kind: str, most: float) -> Any:
        """``most``, up or down, where it was chosen, else 0."""
        tf = require("tensorflow")
        return tf.where(self.chose(kind), self.sign * most, 0.0)


def moves(count: Any, rows: Any, columns: Any, seed: Any, section: AugmentSection) -> Iterator[tuple[Any, ...]]:
    """The affine transform of each change about the centre, as geometry.py has them."""
    tf = require("tensorflow")
    strength = section.randaugment_strength
    x, y = (columns - 1) / 2, (rows - 1) / 2
    for number in range(section.randaugment):
        drawn = _Drawn(count, seed, number)
        turn = drawn.size("turn", strength * math.radians(TURN_DEG))
        a, e = tf.cos(turn), tf.cos(turn)
        b = drawn.size("shear_x", strength * SHEAR) - tf.sin(turn)
        d = drawn.size("shear_y", strength * SHEAR) + tf.sin(turn)
        right = drawn.size("right", strength * SHIFT) * columns
        down = drawn.size("down", strength * SHIFT) * rows
        yield a, b, x - a * x - b * y + right, d, e, y - d * x - e * y + down


def repaint(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """The changes of pixel values."""
    tf = require("tensorflow")
    shape = pixels.shape
    for number in range(section.randaugment):
        drawn = _Drawn(tf.shape(pixels)[0], seed, number)
        for kind, change in REPAINTS.items():
            places = tf.where(drawn.chose(kind))
            sign = per_picture(tf.gather_nd(drawn.sign, places))
            changed = change(tf.gather_nd(pixels, places), sign, section.randaugment_strength)
            pixels = tf.tensor_scatter_nd_update(pixels, places, changed)
    return tf.ensure_shape(pixels, shape)


def _away(pixels: Any, base: Any, sign: Any, strength: float) -> Any:
    """Farther from ``base``, or nearer to it (Pillow's ImageEnhance)."""
    tf = require("tensorflow")
    return tf.clip_by_value(base + (pixels - base) * (1 + sign * strength * ENHANCE), 0.0, 255.0)


def _brightness(pixels: Any, sign: Any, strength: float) -> Any:
    return _away(pixels, 0.0, sign, strength)


def _saturation(pixels: Any, sign: Any, strength: float) -> Any:
    return _away(pixels, colour.grey(pixels), sign, strength)


def _contrast(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    return _away(pixels, tf.reduce_mean(colour.grey(pixels), axis=[1, 2, 3], keepdims=True), sign, strength)


def _sharpness(pixels: Any, sign: Any, strength: float) -> Any:
    tf = require("tensorflow")
    # The smooth picture is Pillow's ImageFilter.SMOOTH: ones about a five. (A convolution of no pictures is refused.)
    padded = tf.pad(pixels, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    smooth = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels) / 13
    return _away(pixels, smooth, sign, strength)


def _posterize(pixels: Any, sign: Any, strength: float) -> Any:
    """Fewer bits."""
    tf = require("tensorflow")
    step = 2.0 ** round(BITS * strength)
    return tf.floor(pixels / step) * step


def _solarize(pixels: Any, sign: Any, strength: float) -> Any:
    """What is lighter than a threshold inverted."""
    tf = require("tensorflow")
    return tf.where(pixels >= 255 * (1 - strength), 255 - pixels, pixels)


def _autocontrast(pixels: Any, sign: Any, strength: float) -> Any:
    """Each channel stretched to the whole range."""
    tf = require("tensorflow")
    low, high = (reduce(pixels, axis=[1, 2], keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    stretched = tf.clip_by_value((pixels - low) * (255 / tf.maximum(high - low, 1e-3)), 0.0, 255.0)
    return tf.where(high > low, stretched, pixels)


def _equalize(pixels: Any, sign: Any, strength: float) -> Any:
    """Each channel's values spread so that all are about as frequent."""
    tf = require("tensorflow")
    height, width, channels = pixels.shape[1:]
    count = tf.shape(pixels)[0]
    values = tf.cast(tf.round(tf.transpose(pixels, [0, 3, 1, 2])), tf.int32)
    values = tf.reshape(values, [count * channels, height * width])
    # Counted by one histogram for all: channel i has the bins from 256 i on.
    bins = values + 256 * tf.range(count * channels)[:, None]
    total = count * channels * 256
    counts = tf.math.bincount(tf.reshape(bins, [-1]), minlength=total, maxlength=total)
    below = tf.cumsum(tf.reshape(tf.cast(counts, tf.float32), [count * channels, 256]), axis=1)
    lowest = tf.gather(below, tf.reduce_min(values, axis=1), batch_dims=1)[:, None]
    table = tf.math.divide_no_nan(below - lowest, height * width - lowest) * 255
    # One value alone stays what it is.
    table = tf.where(lowest == height * width, tf.range(256, dtype=tf.float32)[None], table)
    spread = tf.gather(table, values, batch_dims=1)
    return tf.transpose(tf.reshape(spread, [count, channels, height, width]), [0, 2, 3, 1])


REPAINTS: dict[str, Callable[[Any, Any, float], Any]] = {
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
# In the order of their numbers, which never change: the same seed gives the same changes.
KINDS = ("identity", "shear_x", "shear_y", "right", "down", "turn", *REPAINTS)
