"""Random numbers that follow from a seed and a name alone."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from edgerec.utils.optional import require

# Names are numbered below this, so that two seeds never meet.
NAMES = 64


class Name(IntEnum):
    """What is drawn. A number stays with its name: the same seed gives the same changes in every version."""

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
    RANDAUGMENT_KIND = 32  # and one more for each further change of a picture, as for the next
    RANDAUGMENT_SIGN = 48


def key(seed: Any, name: int) -> list[Any]:
    """The seed of one drawing."""
    return [seed[0] * NAMES + int(name), seed[1]]


def uniform(count: Any, seed: Any, name: int, low: float, high: float) -> Any:
    """float32 ``(count,)``, evenly from ``low`` to ``high``."""
    tf = require("tensorflow")
    return tf.random.stateless_uniform([count], key(seed, name), low, high)


def sign(count: Any, seed: Any, name: int) -> Any:
    """Return random signs -1 or 1 with equal probability, float32 ``(count,)``. Unlike ``tf.sign``, never return 0."""
    tf = require("tensorflow")
    return tf.where(uniform(count, seed, name, -1.0, 1.0) < 0, -1.0, 1.0)


def per_picture(values: Any) -> Any:
    """``(batch,)`` as ``(batch, 1, 1, 1)``, one for all of a picture's pixels."""
    return values[:, None, None, None]
