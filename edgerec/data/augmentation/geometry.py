"""Where pixels go: flip, rotation, zoom, shift, crop and shear as one transform, so that they are interpolated once."""

from __future__ import annotations

import math
from typing import Any

from edgerec.data.augmentation import randaugment
from edgerec.data.augmentation.draw import Name, sign, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# Width to height of what is cut out, as in arXiv:1409.4842.
ASPECTS = (3 / 4, 4 / 3)

# x and y in the input, of x and y in the output: (a, b, c, d, e, f) for (a x + b y + c, d x + e y + f), each (batch,).
Affine = tuple[Any, Any, Any, Any, Any, Any]


def move(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """The picture turned, zoomed, shifted, flipped and cropped about its centre; what was outside repeats the edge."""
    tf = require("tensorflow")
    count, height, width = (tf.shape(pixels)[i] for i in range(3))
    rows, columns = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    affine = _placed(count, rows, columns, seed, section)
    if section.crop:
        affine = _after(affine, _crop(count, rows, columns, seed, section.crop))
    for change in randaugment.moves(count, rows, columns, seed, section):
        affine = _after(affine, change)
    zero = tf.zeros([count])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([*affine, zero, zero], axis=1),
        output_shape=tf.stack([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _placed(count: Any, rows: Any, columns: Any, seed: Any, section: AugmentSection) -> Affine:
    tf = require("tensorflow")
    angle = math.radians(section.rotate_deg)
    turn = uniform(count, seed, Name.TURN, -angle, angle)
    zoom = 1 / uniform(count, seed, Name.ZOOM, 1 - section.zoom, 1 + section.zoom)
    # Whole pixels: a part of one would blur every picture that is only moved, which no test picture is.
    right = tf.round(uniform(count, seed, Name.RIGHT, -section.shift, section.shift) * columns)
    down = tf.round(uniform(count, seed, Name.DOWN, -section.shift, section.shift) * rows)
    mirror = sign(count, seed, Name.MIRROR) if section.flip else tf.ones([count])
    a, b = mirror * zoom * tf.cos(turn), -zoom * tf.sin(turn)
    d, e = mirror * zoom * tf.sin(turn), zoom * tf.cos(turn)
    x, y = (columns - 1) / 2, (rows - 1) / 2
    c = x - a * (x + right) - b * (y + down)
    f = y - d * (x + right) - e * (y + down)
    return a, b, c, d, e, f


def _crop(count: Any, rows: Any, columns: Any, seed: Any, most: float) -> Affine:
    """A part of the picture, anywhere in it, enlarged to the whole; at most the part ``most`` of its area is lost."""
    tf = require("tensorflow")
    area = uniform(count, seed, Name.CROP_AREA, 1 - most, 1)
    aspect = tf.exp(uniform(count, seed, Name.CROP_ASPECT, *map(math.log, ASPECTS)))
    wide, high = tf.minimum(tf.sqrt(area * aspect), 1.0), tf.minimum(tf.sqrt(area / aspect), 1.0)
    right = uniform(count, seed, Name.CROP_RIGHT, 0, 1) * (1 - wide) * (columns - 1)
    down = uniform(count, seed, Name.CROP_DOWN, 0, 1) * (1 - high) * (rows - 1)
    zero = tf.zeros([count])
    return wide, zero, right, zero, high, down


def _after(inner: Affine, outer: Affine) -> Affine:
    """What gives ``inner(outer(x, y))``: the picture changed by ``inner``, and the result by ``outer``."""
    a, b, c, d, e, f = inner
    p, q, r, s, t, u = outer
    return a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f
