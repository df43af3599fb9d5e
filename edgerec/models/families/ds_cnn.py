"""DS-CNN, the depthwise-separable network for keyword spotting (arXiv:1711.07128) that MLPerf Tiny uses."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv, depthwise, global_pool, norm, round_to_8
from edgerec.recipe import ModelSection


def ds_cnn(keras: Any, x: Any, section: ModelSection) -> Any:
    """A 3×3 convolution and four depthwise-separable convolutions with 64 channels; used for keyword spotting."""
    channels = round_to_8(64 * section.width)
    x = keras.layers.ReLU()(norm(keras, conv(keras, x, channels, 3, "conv", stride=2), "conv_bn"))
    for block in range(1, 5):
        x = depthwise(keras, x, 3, f"block{block}_depthwise")
        x = keras.layers.ReLU()(norm(keras, x, f"block{block}_depthwise_bn"))
        x = conv(keras, x, channels, 1, f"block{block}_pointwise")
        x = keras.layers.ReLU()(norm(keras, x, f"block{block}_pointwise_bn"))
    return global_pool(keras, x, section)
