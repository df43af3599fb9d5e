"""VGG networks: stacks of 3×3 convolutions without residual connections (arXiv:1409.1556)."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv, global_pool, norm, round_to_8
from edgerec.recipe import ModelSection


def vgg_small(keras: Any, x: Any, section: ModelSection) -> Any:
    """Six 3×3 convolutions with batch normalization, in three stages of 32, 64 and 128 channels."""
    for stage, channels in enumerate((32, 64, 128), 1):
        for number in (1, 2):
            name = f"block{stage}_conv{number}"
            x = conv(keras, x, round_to_8(channels * section.width), 3, name)
            x = keras.layers.ReLU()(norm(keras, x, f"{name}_bn"))
        x = keras.layers.MaxPooling2D()(x)
    return global_pool(keras, x, section)


def vgg16(keras: Any, x: Any, section: ModelSection) -> Any:
    """VGG16: thirteen 3×3 convolutions without batch normalization; trains well only from ImageNet weights."""
    for stage, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for number in range(1, count + 1):
            x = conv(keras, x, round_to_8(channels * section.width), 3, f"block{stage}_conv{number}", bias=True)
            x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D()(x)
    return global_pool(keras, x, section)
