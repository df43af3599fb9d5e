"""What covers a part of a picture, or mixes it with another one of the batch."""

from __future__ import annotations

from typing import Any

from edgerec.data.augmentation.draw import Name, key, per_picture, uniform
from edgerec.recipe import AugmentSection
from edgerec.utils.optional import require


def cutout(pixels: Any, seed: Any, section: AugmentSection) -> Any:
    """A square of the picture's mean colour somewhere on it, or partly beside it (arXiv:1708.04552)."""
    tf = require("tensorflow")
    side = tf.fill([tf.shape(pixels)[0]], section.cutout)
    inside = _box(pixels, seed, (Name.CUTOUT_RIGHT, Name.CUTOUT_DOWN), side)
    covered = tf.cast(inside, tf.float32)
    return (1 - covered) * pixels + covered * tf.reduce_mean(pixels, axis=[1, 2], keepdims=True)


def mix(pixels: Any, shares: Any, seed: Any, section: AugmentSection) -> tuple[Any, Any]:
    """Each picture with the one before it in the batch: blended (mixup, arXiv:1710.09412) or a box of the other pasted
    in (cutmix, arXiv:1905.04899), and the shares of the classes alike. With both turned on, each picture draws which.
    """
    tf = require("tensorflow")
    count = tf.shape(pixels)[0]
    pastes = uniform(count, seed, Name.MIX_KIND, 0, 1) < 0.5
    if not (section.mixup and section.cutmix):
        pastes = tf.fill([count], bool(section.cutmix))
    kept = _beta(seed, tf.where(pastes, section.cutmix, section.mixup))
    inside = _box(pixels, seed, (Name.MIX_RIGHT, Name.MIX_DOWN), tf.sqrt(1 - kept))
    blend = tf.where(per_picture(pastes), 1 - tf.cast(inside, tf.float32), per_picture(kept))
    # What was pasted can lie partly beside the picture: the shares are those of the pixels.
    kept = tf.reduce_mean(blend, axis=[1, 2, 3])[:, None]
    pixels = blend * pixels + (1 - blend) * tf.roll(pixels, 1, axis=0)
    shares = kept * shares + (1 - kept) * tf.roll(shares, 1, axis=0)
    return tf.clip_by_value(pixels, 0.0, 255.0), shares


def _beta(seed: Any, alpha: Any) -> Any:
    """Of Beta(alpha, alpha), ``(batch,)``; where both gamma variates are too small for a float, 0."""
    tf = require("tensorflow")
    one, other = (
        tf.random.stateless_gamma(tf.shape(alpha), key(seed, name), alpha) for name in (Name.MIX_ONE, Name.MIX_OTHER)
    )
    return tf.math.divide_no_nan(one, one + other)


def _box(pixels: Any, seed: Any, names: tuple[int, int], side: Any) -> Any:
    """bool ``(batch, H, W, 1)``: a box of ``side`` (parts of the picture's sides) about a point of the picture."""
    tf = require("tensorflow")

    def between(length: int, name: int) -> Any:
        half = side * length / 2
        centre = uniform(tf.shape(pixels)[0], seed, name, 0, length)
        places = tf.range(length, dtype=tf.float32)[None] + 0.5
        return (places > (centre - half)[:, None]) & (places < (centre + half)[:, None])

    columns, rows = between(pixels.shape[2], names[0]), between(pixels.shape[1], names[1])
    return rows[:, :, None, None] & columns[:, None, :, None]
