"""DenseNet (arXiv:1608.06993), in which each layer takes the outputs of all previous layers of its block."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv, global_pool, norm, round_to_8, stem
from edgerec.recipe import ModelSection

BLOCKS = (6, 12, 24, 16)
# Batch normalization epsilon of Keras' DenseNet121, whose ImageNet weights are loaded.
EPSILON = 1.001e-5


def densenet121(keras: Any, x: Any, section: ModelSection) -> Any:
    """DenseNet-121: dense blocks of 6, 12, 24 and 16 layers; ``width`` scales the 32 channels that a layer adds."""
    growth = round_to_8(32 * section.width)
    x = stem(keras, x, "conv1_{}", channels=2 * growth, bias=False)
    for stage, count in enumerate(BLOCKS, 2):
        if stage > 2:
            x = _transition(keras, x, f"pool{stage - 1}")
        for number in range(1, count + 1):
            x = _dense_layer(keras, x, growth, f"conv{stage}_block{number}")
    return global_pool(keras, _norm_relu(keras, x, "bn"), section)


def _dense_layer(keras: Any, x: Any, growth: int, name: str) -> Any:
    y = conv(keras, _norm_relu(keras, x, f"{name}_0_bn"), 4 * growth, 1, f"{name}_1_conv")
    y = conv(keras, _norm_relu(keras, y, f"{name}_1_bn"), growth, 3, f"{name}_2_conv")
    return keras.layers.Concatenate()([x, y])


def _transition(keras: Any, x: Any, name: str) -> Any:
    x = _norm_relu(keras, x, f"{name}_bn")
    return keras.layers.AveragePooling2D()(conv(keras, x, x.shape[-1] // 2, 1, f"{name}_conv"))


def _norm_relu(keras: Any, x: Any, name: str) -> Any:
    return keras.layers.ReLU()(norm(keras, x, name, epsilon=EPSILON))
