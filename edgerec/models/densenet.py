"""DenseNet (arXiv:1608.06993): every layer sees what all before it made."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv, eights, norm, pooled, stem
from edgerec.recipe import ModelSection

BLOCKS = (6, 12, 24, 16)
# Of Keras' weights.
EPSILON = 1.001e-5


def densenet121(keras: Any, x: Any, section: ModelSection) -> Any:
    """Four dense blocks of 6, 12, 24 and 16 layers; ``width`` is a factor on the 32 channels that each adds."""
    growth = eights(32 * section.width)
    x = stem(keras, x, "conv1_{}", channels=2 * growth, bias=False)
    for stage, count in enumerate(BLOCKS, 2):
        if stage > 2:
            x = _transition(keras, x, f"pool{stage - 1}")
        for number in range(1, count + 1):
            x = _layer(keras, x, growth, f"conv{stage}_block{number}")
    return pooled(keras, _rectified(keras, x, "bn"), section)


def _layer(keras: Any, x: Any, growth: int, name: str) -> Any:
    y = conv(keras, _rectified(keras, x, f"{name}_0_bn"), 4 * growth, 1, f"{name}_1_conv")
    y = conv(keras, _rectified(keras, y, f"{name}_1_bn"), growth, 3, f"{name}_2_conv")
    return keras.layers.Concatenate()([x, y])


def _transition(keras: Any, x: Any, name: str) -> Any:
    """Half the channels at half the size."""
    x = _rectified(keras, x, f"{name}_bn")
    return keras.layers.AveragePooling2D()(conv(keras, x, x.shape[-1] // 2, 1, f"{name}_conv"))


def _rectified(keras: Any, x: Any, name: str) -> Any:
    return keras.layers.ReLU()(norm(keras, x, name, epsilon=EPSILON))
