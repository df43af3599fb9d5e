"""Plain stacks of 3×3 convolutions (arXiv:1409.1556)."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv, eights, norm, pooled
from edgerec.recipe import ModelSection


def vgg_small(keras: Any, x: Any, section: ModelSection) -> Any:
    """Three pairs of convolutions of 32, 64 and 128 channels with batch normalisation: deeper than the tutorial's."""
    for stage, channels in enumerate((32, 64, 128), 1):
        for number in (1, 2):
            name = f"block{stage}_conv{number}"
            x = conv(keras, x, eights(channels * section.width), 3, name)
            x = keras.layers.ReLU()(norm(keras, x, f"{name}_bn"))
        x = keras.layers.MaxPooling2D()(x)
    return pooled(keras, x, section)


def vgg16(keras: Any, x: Any, section: ModelSection) -> Any:
    """Thirteen convolutions up to 512 channels, and their mean: without normalisation it wants ImageNet's weights."""
    for stage, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for number in range(1, count + 1):
            x = conv(keras, x, eights(channels * section.width), 3, f"block{stage}_conv{number}", bias=True)
            x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D()(x)
    return pooled(keras, x, section)
