"""Random changes of the training pictures, a batch at a time, inside TensorFlow's graph.

What is drawn follows from the seed alone, and a picture's from its place in the batch, never from its neighbours;
only mixup and cutmix look at another picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgerec.data.augmentation import camera, colour, geometry, mixing, randaugment
from edgerec.recipe import AugmentSection


def augmenter(section: AugmentSection) -> Callable[[Any, Any], Any] | None:
    """A function ``(pixels, seed) -> pixels``, or None when everything is turned off.

    Pixels are float32 ``(batch, H, W, C)`` in 0…255 in and out; the seed is an int ``(2,)`` tensor: the same
    seed gives the same changes. Grey pictures have no colours to change.
    """
    # In the order in which light meets them: the scene moves, is lit, blurs on the sensor, is exposed and stored.
    steps: list[Callable[[Any, Any, AugmentSection], Any]] = []
    if section.flip or section.shift or section.rotate_deg or section.zoom or section.crop or section.randaugment:
        steps.append(geometry.move)
    if section.randaugment:
        steps.append(randaugment.repaint)
    if section.brightness or section.contrast:
        steps.append(colour.light)
    if section.saturation or section.hue_deg:
        steps.append(colour.tint)
    if section.motion_blur:
        steps.append(camera.motion_blur)
    if section.exposure_stops or section.gamma:
        steps.append(camera.expose)
    if section.noise:
        steps.append(camera.noise)
    if section.jpeg:
        steps.append(camera.jpeg)
    if section.cutout:
        steps.append(mixing.cutout)
    if not steps:
        return None

    def augment(pixels: Any, seed: Any) -> Any:
        for step in steps:
            pixels = step(pixels, seed, section)
        return pixels

    return augment


def mixer(section: AugmentSection) -> Callable[[Any, Any, Any], tuple[Any, Any]] | None:
    """A function ``(pixels, shares, seed) -> (pixels, shares)``, or None when nothing is mixed.

    Pixels are as for :func:`augmenter`; shares float32 ``(batch, classes)``, how much of each class a picture shows:
    one-hot in, and summing to 1 out.
    """
    if not section.mixes:
        return None
    return lambda pixels, shares, seed: mixing.mix(pixels, shares, seed, section)
