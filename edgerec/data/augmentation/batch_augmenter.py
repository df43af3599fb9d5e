"""Augment batches of training images with TensorFlow operations.

The random parameters depend only on the seed and on the position of the image in the batch. Only mixup and cutmix
combine an image with another image of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgerec.data.augmentation import camera, color, geometry, mixing, randaugment
from edgerec.recipe import AugmentSection


def augmenter(section: AugmentSection) -> Callable[[Any, Any], Any] | None:
    """Return a function that augments a batch of images, or None if all augmentations are disabled.

    The signature of the function is ``(pixels, seed) -> pixels``. Input and output pixels are float32
    ``(batch, H, W, C)`` in 0…255. The seed is an integer tensor of shape ``(2,)``, and equal seeds give equal results.
    Saturation and hue do not change grayscale images.
    """
    # The order of the steps follows image formation, from motion and lighting to noise and compression.
    steps: list[Callable[[Any, Any, AugmentSection], Any]] = []
    if section.flip or section.shift or section.rotate_deg or section.zoom or section.crop or section.randaugment:
        steps.append(geometry.transform)
    if section.randaugment:
        steps.append(randaugment.change_pixel_values)
    if section.brightness or section.contrast:
        steps.append(color.change_brightness_and_contrast)
    if section.saturation or section.hue_deg:
        steps.append(color.change_saturation_and_hue)
    if section.motion_blur:
        steps.append(camera.motion_blur)
    if section.exposure_stops or section.gamma:
        steps.append(camera.change_exposure_and_gamma)
    if section.noise:
        steps.append(camera.add_noise)
    if section.jpeg:
        steps.append(camera.compress_as_jpeg)
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
    """Return a function that applies mixup and cutmix to a batch, or None if both are disabled.

    The signature of the function is ``(pixels, soft_labels, seed) -> (pixels, soft_labels)``. Pixels
    and seed are as for :func:`augmenter`. Soft labels are float32 ``(batch, classes)``: one-hot in the input, and class
    probabilities that sum to 1 in the output.
    """
    if not section.mixes:
        return None
    return lambda pixels, soft_labels, seed: mixing.mix(pixels, soft_labels, seed, section)
