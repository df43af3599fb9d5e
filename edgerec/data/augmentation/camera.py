"""What a camera does to a picture: motion blur, exposure, noise, compression."""

from __future__ import annotations

import math
from typing import Any

from edgerec.data.augmentation.draw import Name, key, per_picture, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# Pixel values are about this root of the light (IEC 61966-2-1): a stop of light is 2 ** (1 / 2.2) of value.
DISPLAY_GAMMA = 2.2


def motion_blur(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Each picture smeared along a straight line of a direction and length of its own."""
    tf = require("tensorflow")
    height, width, channels = pixels.shape[1:]
    count, longest_px = tf.shape(pixels)[0], section.motion_blur * max(height, width)
    kernels = _lines(count, seed, longest_px)
    reach = kernels.shape[1] // 2
    padded = tf.pad(pixels, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "SYMMETRIC")
    # A kernel per picture: pictures become channels of one, and each channel is convolved by itself.
    side_by_side = tf.reshape(
        tf.transpose(padded, [1, 2, 0, 3]), [1, height + 2 * reach, width + 2 * reach, count * channels]
    )
    filters = tf.repeat(tf.transpose(kernels, [1, 2, 0]), channels, axis=2)[..., None]
    blurred = tf.nn.depthwise_conv2d(side_by_side, filters, [1, 1, 1, 1], "VALID")
    apart = tf.transpose(tf.reshape(blurred, [height, width, count, channels]), [2, 0, 1, 3])
    return tf.clip_by_value(tf.ensure_shape(apart, pixels.shape), 0.0, 255.0)


def _lines(count: Any, seed: Any, longest_px: float) -> Any:
    """``(count, side, side)`` that sum to 1 each: a line through the centre, a pixel wide, 0 to ``longest_px`` long."""
    tf = require("tensorflow")
    length = uniform(count, seed, Name.BLUR_LENGTH, 0, longest_px)[:, None, None]
    angle = uniform(count, seed, Name.BLUR_ANGLE, 0, math.pi)[:, None, None]
    reach = math.ceil(longest_px / 2)
    steps = tf.range(-reach, reach + 1, dtype=tf.float32)
    x, y = steps[None, None, :], steps[None, :, None]
    along = tf.abs(x * tf.cos(angle) + y * tf.sin(angle))
    beside = tf.abs(y * tf.cos(angle) - x * tf.sin(angle))
    weights = tf.clip_by_value(length / 2 + 0.5 - along, 0, 1) * tf.maximum(1 - beside, 0)
    return weights / tf.reduce_sum(weights, axis=[1, 2], keepdims=True)


def expose(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """More or less light, burnt out where it is too much, and another gamma."""
    tf = require("tensorflow")
    count = tf.shape(pixels)[0]
    stops, steepest = section.exposure_stops, math.log2(1 + section.gamma)
    gain = per_picture(tf.pow(2.0, uniform(count, seed, Name.EXPOSURE, -stops, stops) / DISPLAY_GAMMA))
    exposed = tf.clip_by_value(pixels * gain, 0.0, 255.0)
    if not section.gamma:
        return exposed
    exponent = per_picture(tf.pow(2.0, uniform(count, seed, Name.GAMMA, -steepest, steepest)))
    # A power by way of the logarithm, which TensorFlow computes six times as fast as tf.pow.
    return tf.minimum(255 * tf.exp(exponent * tf.math.log(exposed / 255)), 255.0)


def noise(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Normal noise, of another level in each picture."""
    tf = require("tensorflow")
    level = per_picture(uniform(tf.shape(pixels)[0], seed, Name.NOISE_LEVEL, 0, 255 * section.noise))
    grain = tf.random.stateless_normal(tf.shape(pixels), key(seed, Name.NOISE))
    return tf.clip_by_value(pixels + level * grain, 0.0, 255.0)


def jpeg(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Stored as JPEG and read again, at a quality between ``section.jpeg`` and 100."""
    tf = require("tensorflow")
    quality = uniform(tf.shape(pixels)[0], seed, Name.JPEG, section.jpeg, 101)
    quality = tf.minimum(tf.cast(quality, tf.int32), 100)
    stored = tf.map_fn(
        lambda one: tf.image.adjust_jpeg_quality(one[0], one[1]),
        (tf.cast(tf.round(pixels), tf.uint8), quality),
        fn_output_signature=tf.TensorSpec(pixels.shape[1:], tf.uint8),
    )
    return tf.cast(tf.ensure_shape(stored, pixels.shape), tf.float32)
