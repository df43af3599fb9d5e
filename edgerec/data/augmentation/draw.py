"""Draw reproducible random parameters for augmentations."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from edgerec.utils.optional import require

# STREAMS must be greater than all Stream values, so that different batches never use the same seed.
STREAMS = 64


class Stream(IntEnum):
    """Random number stream of each augmentation parameter.

    The numbers never change, so that a seed gives the same augmentations in every version.
    """

    TURN = 0
    ZOOM = 1
    RIGHT = 2
    DOWN = 3
    MIRROR = 4
    CONTRAST = 5
    BRIGHTNESS = 6
    CROP_AREA = 7
    CROP_ASPECT = 8
    CROP_RIGHT = 9
    CROP_DOWN = 10
    SATURATION = 11
    HUE = 12
    BLUR_LENGTH = 13
    BLUR_ANGLE = 14
    EXPOSURE = 15
    GAMMA = 16
    NOISE_LEVEL = 17
    NOISE = 18
    JPEG = 19
    CUTOUT_RIGHT = 20
    CUTOUT_DOWN = 21
    MIX_KIND = 22
    MIX_ONE = 23
    MIX_OTHER = 24
    MIX_RIGHT = 25
    MIX_DOWN = 26
    # The n-th RandAugment operation uses the streams RANDAUGMENT_KIND + n and RANDAUGMENT_SIGN + n.
    RANDAUGMENT_KIND = 32
    RANDAUGMENT_SIGN = 48


def stream_seed(seed: Any, stream: int) -> list[Any]:
    """Return the seed of a random number stream for TensorFlow's stateless random functions."""
    return [seed[0] * STREAMS + int(stream), seed[1]]


def uniform(count: Any, seed: Any, stream: int, low: float, high: float) -> Any:
    """Return ``count`` float32 random numbers that are uniformly distributed in [``low``, ``high``)."""
    tf = require("tensorflow")
    return tf.random.stateless_uniform([count], stream_seed(seed, stream), low, high)


def sign(count: Any, seed: Any, stream: int) -> Any:
    """Return ``count`` random signs, each of which is -1.0 or 1.0 with equal probability."""
    tf = require("tensorflow")
    return tf.where(uniform(count, seed, stream, -1.0, 1.0) < 0, -1.0, 1.0)


def per_image(values: Any) -> Any:
    """Reshape ``(batch,)`` to ``(batch, 1, 1, 1)`` to broadcast each value over the pixels of an image."""
    return values[:, None, None, None]
