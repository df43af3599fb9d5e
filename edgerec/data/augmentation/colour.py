"""How light or colourful the scene is."""

from __future__ import annotations

import math
from typing import Any

from edgerec.data.augmentation.draw import Name, per_picture, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# What red, green and blue add to the lightness (ITU-R BT.709), and the rotation of colours by a right angle about the
# grey axis that keeps it: the matrices of feColorMatrix, "saturate" and "hueRotate" (W3C Filter Effects, 9.6).
LUMA = (0.213, 0.715, 0.072)
QUARTER_TURN = ((-0.213, -0.715, 0.928), (0.143, 0.140, -0.283), (-0.787, 0.715, 0.072))


def light(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Brightness and contrast, each by a number per picture."""
    tf = require("tensorflow")
    count = tf.shape(pixels)[0]
    factor = per_picture(uniform(count, seed, Name.CONTRAST, 1 - section.contrast, 1 + section.contrast))
    offset = per_picture(uniform(count, seed, Name.BRIGHTNESS, -section.brightness, section.brightness))
    mean = tf.reduce_mean(pixels, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value((pixels - mean) * factor + mean + 255 * offset, 0.0, 255.0)


def tint(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Saturation and hue as one matrix per picture, that leaves greys as they are; nothing for grey pictures."""
    tf = require("tensorflow")
    if pixels.shape[3] != 3:
        return pixels
    count = tf.shape(pixels)[0]
    factor = uniform(count, seed, Name.SATURATION, 1 - section.saturation, 1 + section.saturation)
    angle = math.radians(section.hue_deg)
    turn = uniform(count, seed, Name.HUE, -angle, angle)
    to_grey = tf.constant([LUMA] * 3)
    along, across = ((factor * part(turn))[:, None, None] for part in (tf.cos, tf.sin))
    matrix = to_grey + along * (tf.eye(3) - to_grey) + across * tf.constant(QUARTER_TURN)
    return tf.clip_by_value(tf.einsum("bhwc,bdc->bhwd", pixels, matrix), 0.0, 255.0)


def grey(pixels: Any) -> Any:
    """The lightness, ``(batch, H, W, 1)``."""
    tf = require("tensorflow")
    return pixels if pixels.shape[3] == 1 else tf.reduce_sum(pixels * tf.constant(LUMA), axis=3, keepdims=True)
