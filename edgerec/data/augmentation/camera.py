"""Augmentations that simulate a camera: motion blur, exposure, gamma, noise and JPEG compression."""

from __future__ import annotations

import math
from typing import Any

from edgerec.data.augmentation.draw import Stream, per_image, stream_seed, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require

# Approximate exponent of the sRGB transfer function (IEC 61966-2-1).
DISPLAY_GAMMA = 2.2


def motion_blur(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Apply motion blur to each image, with a random direction and a random length.

    The maximum length is the fraction ``section.motion_blur`` of the longer side of the image.
    """
    tf = require("tensorflow")
    height, width, channels = pixels.shape[1:]
    count, longest_px = tf.shape(pixels)[0], section.motion_blur * max(height, width)
    kernels = _line_kernels(count, seed, longest_px)
    reach = kernels.shape[1] // 2
    padded = tf.pad(pixels, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "SYMMETRIC")
    # Treat the batch as the channels of one image, so that a depthwise convolution applies one kernel per image.
    stacked = tf.reshape(
        tf.transpose(padded, [1, 2, 0, 3]), [1, height + 2 * reach, width + 2 * reach, count * channels]
    )
    filters = tf.repeat(tf.transpose(kernels, [1, 2, 0]), channels, axis=2)[..., None]
    blurred = tf.nn.depthwise_conv2d(stacked, filters, [1, 1, 1, 1], "VALID")
    images = tf.transpose(tf.reshape(blurred, [height, width, count, channels]), [2, 0, 1, 3])
    return tf.clip_by_value(tf.ensure_shape(images, pixels.shape), 0.0, 255.0)


def _line_kernels(count: Any, seed: Any, longest_px: float) -> Any:
    """Return one motion blur kernel per image, a line of random length and direction whose weights sum to 1."""
    tf = require("tensorflow")
    length = uniform(count, seed, Stream.BLUR_LENGTH, 0, longest_px)[:, None, None]
    angle = uniform(count, seed, Stream.BLUR_ANGLE, 0, math.pi)[:, None, None]
    reach = math.ceil(longest_px / 2)
    steps = tf.range(-reach, reach + 1, dtype=tf.float32)
    x, y = steps[None, None, :], steps[None, :, None]
    along = tf.abs(x * tf.cos(angle) + y * tf.sin(angle))
    beside = tf.abs(y * tf.cos(angle) - x * tf.sin(angle))
    weights = tf.clip_by_value(length / 2 + 0.5 - along, 0, 1) * tf.maximum(1 - beside, 0)
    return weights / tf.reduce_sum(weights, axis=[1, 2], keepdims=True)


def change_exposure_and_gamma(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Apply a random exposure and a random gamma to each image.

    The exposure changes by up to ``section.exposure_stops``, and overexposed pixels are clipped. With
    g = ``section.gamma``, the exponent is drawn from [1/(1+g), 1+g].
    """
    tf = require("tensorflow")
    count = tf.shape(pixels)[0]
    stops, steepest = section.exposure_stops, math.log2(1 + section.gamma)
    gain = per_image(tf.pow(2.0, uniform(count, seed, Stream.EXPOSURE, -stops, stops) / DISPLAY_GAMMA))
    exposed = tf.clip_by_value(pixels * gain, 0.0, 255.0)
    if not section.gamma:
        return exposed
    exponent = per_image(tf.pow(2.0, uniform(count, seed, Stream.GAMMA, -steepest, steepest)))
    # The expression exp(exponent * log(x)) is much faster than tf.pow.
    return tf.minimum(255 * tf.exp(exponent * tf.math.log(exposed / 255)), 255.0)


def add_noise(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Add Gaussian noise with a random standard deviation to each image.

    The maximum standard deviation is the fraction ``section.noise`` of the value range.
    """
    tf = require("tensorflow")
    level = per_image(uniform(tf.shape(pixels)[0], seed, Stream.NOISE_LEVEL, 0, 255 * section.noise))
    noise = tf.random.stateless_normal(tf.shape(pixels), stream_seed(seed, Stream.NOISE))
    return tf.clip_by_value(pixels + level * noise, 0.0, 255.0)


def compress_as_jpeg(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """Compress each image as JPEG with a random quality between ``section.jpeg`` and 100, then decode it again."""
    tf = require("tensorflow")
    quality = uniform(tf.shape(pixels)[0], seed, Stream.JPEG, section.jpeg, 101)
    quality = tf.minimum(tf.cast(quality, tf.int32), 100)
    compressed = tf.map_fn(
        lambda image_and_quality: tf.image.adjust_jpeg_quality(*image_and_quality),
        (tf.cast(tf.round(pixels), tf.uint8), quality),
        fn_output_signature=tf.TensorSpec(pixels.shape[1:], tf.uint8),
    )
    return tf.cast(tf.ensure_shape(compressed, pixels.shape), tf.float32)
