"""Geometric augmentations: flip, rotation, zoom, shift, crop and shear, applied with a single interpolation."""

from __future__ import annotations

import math
from typing import Any

from edgerec.data.augmentation import randaugment
from edgerec.data.augmentation.draw import Stream, sign, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# Minimum and maximum aspect ratio (width / height) of a random crop, as in arXiv:1409.4842.
ASPECTS = (3 / 4, 4 / 3)

# The affine map (a, b, c, d, e, f) maps an output pixel (x, y) to the input pixel (a x + b y + c, d x + e y + f).
Affine = tuple[Any, Any, Any, Any, Any, Any]


def transform(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Rotate, zoom, shift, flip, crop and shear each image randomly about its center.

    Pixels from outside the image repeat the nearest edge pixel.
    """
    tf = require("tensorflow")
    count, height, width = (tf.shape(pixels)[i] for i in range(3))
    rows, columns = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    affine = _rotation_zoom_shift_flip(count, rows, columns, seed, section)
    if section.crop:
        affine = _compose(affine, _random_crop(count, rows, columns, seed, section.crop))
    for operation in randaugment.geometric_operations(count, rows, columns, seed, section):
        affine = _compose(affine, operation)
    zero = tf.zeros([count])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([*affine, zero, zero], axis=1),
        output_shape=tf.stack([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _rotation_zoom_shift_flip(count: Any, rows: Any, columns: Any, seed: Any, section: AugmentSection) -> Affine:
    tf = require("tensorflow")
    angle = math.radians(section.rotate_deg)
    turn = uniform(count, seed, Stream.TURN, -angle, angle)
    zoom = 1 / uniform(count, seed, Stream.ZOOM, 1 - section.zoom, 1 + section.zoom)
    # Shift by whole pixels, because interpolation would blur the training images but not the test images.
    right = tf.round(uniform(count, seed, Stream.RIGHT, -section.shift, section.shift) * columns)
    down = tf.round(uniform(count, seed, Stream.DOWN, -section.shift, section.shift) * rows)
    mirror = sign(count, seed, Stream.MIRROR) if section.flip else tf.ones([count])
    a, b = mirror * zoom * tf.cos(turn), -zoom * tf.sin(turn)
    d, e = mirror * zoom * tf.sin(turn), zoom * tf.cos(turn)
    x, y = (columns - 1) / 2, (rows - 1) / 2
    c = x - a * (x + right) - b * (y + down)
    f = y - d * (x + right) - e * (y + down)
    return a, b, c, d, e, f


def _random_crop(count: Any, rows: Any, columns: Any, seed: Any, max_removed_area: float) -> Affine:
    tf = require("tensorflow")
    area = uniform(count, seed, Stream.CROP_AREA, 1 - max_removed_area, 1)
    aspect = tf.exp(uniform(count, seed, Stream.CROP_ASPECT, *map(math.log, ASPECTS)))
    wide, high = tf.minimum(tf.sqrt(area * aspect), 1.0), tf.minimum(tf.sqrt(area / aspect), 1.0)
    right = uniform(count, seed, Stream.CROP_RIGHT, 0, 1) * (1 - wide) * (columns - 1)
    down = uniform(count, seed, Stream.CROP_DOWN, 0, 1) * (1 - high) * (rows - 1)
    zero = tf.zeros([count])
    return wide, zero, right, zero, high, down


def _compose(inner: Affine, outer: Affine) -> Affine:
    a, b, c, d, e, f = inner
    p, q, r, s, t, u = outer
    return a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f
