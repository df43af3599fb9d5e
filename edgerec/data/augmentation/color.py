"""Augmentations of brightness, contrast, saturation and hue."""

from __future__ import annotations

import math
from typing import Any

from edgerec.data.augmentation.draw import Stream, per_image, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# Luma coefficients for red, green and blue (ITU-R BT.709).
LUMA = (0.213, 0.715, 0.072)
# Sine term of the hue rotation matrix that W3C Filter Effects defines for feColorMatrix (section 9.6).
HUE_ROTATION = ((-0.213, -0.715, 0.928), (0.143, 0.140, -0.283), (-0.787, 0.715, 0.072))


def change_brightness_and_contrast(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Change each image's brightness and contrast by random amounts.

    The offset is up to ``section.brightness`` of the value range. The contrast factor is drawn from
    1 ± ``section.contrast`` and applied about the mean of the image.
    """
    tf = require("tensorflow")
    count = tf.shape(pixels)[0]
    factor = per_image(uniform(count, seed, Stream.CONTRAST, 1 - section.contrast, 1 + section.contrast))
    offset = per_image(uniform(count, seed, Stream.BRIGHTNESS, -section.brightness, section.brightness))
    mean = tf.reduce_mean(pixels, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value((pixels - mean) * factor + mean + 255 * offset, 0.0, 255.0)


def change_saturation_and_hue(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Change each image's saturation and hue by random amounts.

    Grayscale images are returned unchanged.
    """
    tf = require("tensorflow")
    if pixels.shape[3] != 3:
        return pixels
    count = tf.shape(pixels)[0]
    factor = uniform(count, seed, Stream.SATURATION, 1 - section.saturation, 1 + section.saturation)
    angle = math.radians(section.hue_deg)
    rotation = uniform(count, seed, Stream.HUE, -angle, angle)
    to_gray = tf.constant([LUMA] * 3)
    cosine, sine = ((factor * function(rotation))[:, None, None] for function in (tf.cos, tf.sin))
    matrix = to_gray + cosine * (tf.eye(3) - to_gray) + sine * tf.constant(HUE_ROTATION)
    return tf.clip_by_value(tf.einsum("bhwc,bdc->bhwd", pixels, matrix), 0.0, 255.0)


def luma(pixels: Any) -> Any:
    """Return the luma of each pixel, as a float32 tensor of shape ``(batch, H, W, 1)``."""
    tf = require("tensorflow")
    return pixels if pixels.shape[3] == 1 else tf.reduce_sum(pixels * tf.constant(LUMA), axis=3, keepdims=True)
