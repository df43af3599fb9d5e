"""Random changes of the training pictures, a batch at a time, inside TensorFlow's graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgerec.contract.recipe import AugmentSection
from edgerec.optional import require


def augmenter(section: AugmentSection) -> Callable[[Any, Any], Any] | None:
    """A function ``(pixels, seed) -> pixels``, or None when everything is turned off.

    Pixels are float32 ``(batch, H, W, C)`` in 0…255 in and out; the seed is an int ``(2,)`` tensor: the same
    seed gives the same changes.
    """
    moves = section.flip or section.shift or section.rotate_deg or section.zoom
    lights = section.brightness or section.contrast
    if not (moves or lights):
        return None

    def augment(pixels: Any, seed: Any) -> Any:
        if moves:
            pixels = _move(pixels, seed, section)
        return _light(pixels, seed, section) if lights else pixels

    return augment


def _uniform(count: Any, seed: Any, salt: int, low: float, high: float) -> Any:
    tf = require("tensorflow")
    return tf.random.stateless_uniform([count], [seed[0] * 64 + salt, seed[1]], low, high)


def _move(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Flip, rotation, zoom and shift as one projective transform, so that pixels are interpolated once.

    The transform maps output to input coordinates about the picture's centre (ImageProjectiveTransformV3).
    """
    tf = require("tensorflow")
    count, height, width = (tf.shape(pixels)[i] for i in range(3))
    rows, columns = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    angle = math.radians(section.rotate_deg)
    turn = _uniform(count, seed, 0, -angle, angle)
    zoom = 1 / _uniform(count, seed, 1, 1 - section.zoom, 1 + section.zoom)
    # Whole pixels: a part of one would blur every picture that is only moved, which no test picture is.
    right = tf.round(_uniform(count, seed, 2, -section.shift, section.shift) * columns)
    down = tf.round(_uniform(count, seed, 3, -section.shift, section.shift) * rows)
    mirror = tf.sign(_uniform(count, seed, 4, -1.0, 1.0)) if section.flip else tf.ones([count])
    a, b = mirror * zoom * tf.cos(turn), -zoom * tf.sin(turn)
    d, e = mirror * zoom * tf.sin(turn), zoom * tf.cos(turn)
    x, y = (columns - 1) / 2, (rows - 1) / 2
    c = x - a * (x + right) - b * (y + down)
    f = y - d * (x + right) - e * (y + down)
    zero = tf.zeros([count])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=1),
        output_shape=tf.stack([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _light(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    tf = require("tensorflow")
    count = tf.shape(pixels)[0]
    factor = _uniform(count, seed, 5, 1 - section.contrast, 1 + section.contrast)[:, None, None, None]
    offset = _uniform(count, seed, 6, -section.brightness, section.brightness)[:, None, None, None]
    mean = tf.reduce_mean(pixels, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value((pixels - mean) * factor + mean + 255 * offset, 0.0, 255.0)
