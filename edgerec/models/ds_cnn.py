"""The small depthwise-separable network of keyword spotting (arXiv:1711.07128), which MLPerf Tiny uses."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv, depthwise, eights, norm, pooled
from edgerec.recipe import ModelSection


def ds_cnn(keras: Any, x: Any, section: ModelSection) -> Any:
    """A convolution and four depthwise-separable ones of 64 channels; the first is 3×3, as pictures are square."""
    channels = eights(64 * section.width)
    x = keras.layers.ReLU()(norm(keras, conv(keras, x, channels, 3, "conv", stride=2), "conv_bn"))
    for block in range(1, 5):
        x = depthwise(keras, x, 3, f"block{block}_depthwise")
        x = keras.layers.ReLU()(norm(keras, x, f"block{block}_depthwise_bn"))
        x = conv(keras, x, channels, 1, f"block{block}_pointwise")
        x = keras.layers.ReLU()(norm(keras, x, f"block{block}_pointwise_bn"))
    return pooled(keras, x, section)
