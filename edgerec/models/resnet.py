"""Small residual networks (arXiv:1512.03385)."""

from __future__ import annotations

from typing import Any

from edgerec.contract.recipe import ModelSection


def resnet8(keras: Any, x: Any, section: ModelSection) -> Any:
    """MLPerf Tiny's image classification net: three residual stages of 16, 32 and 64 channels, a block each."""
    return _resnet(keras, x, section, blocks=1)


def resnet14(keras: Any, x: Any, section: ModelSection) -> Any:
    """The same with two blocks a stage: at ``width`` 0.66 about as large as resnet8, deeper and thinner."""
    return _resnet(keras, x, section, blocks=2)


def _resnet(keras: Any, x: Any, section: ModelSection, blocks: int) -> Any:
    channels = [_eights(n * section.width) for n in (16, 32, 64)]
    x = _conv(keras, x, channels[0], relu=True)
    for stage, count in enumerate(channels):
        for block in range(blocks):
            x = _block(keras, x, count, stride=2 if stage and not block else 1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.layers.Dropout(section.dropout)(x) if section.dropout else x


def _eights(count: float) -> int:
    """A multiple of 8, in which vector units count, that is no more than a tenth below (as in MobileNetV2's code)."""
    rounded = max(8, int(count / 8 + 0.5) * 8)
    return rounded if rounded >= 0.9 * count else rounded + 8


def _block(keras: Any, x: Any, channels: int, stride: int) -> Any:
    y = _conv(keras, x, channels, stride=stride, relu=True)
    y = _conv(keras, y, channels)
    if stride != 1:
        x = _conv(keras, x, channels, kernel=1, stride=stride, normalised=False)
    x = keras.layers.Add()([x, y])
    return keras.layers.ReLU()(x)


def _conv(
    keras: Any, x: Any, channels: int, *, kernel: int = 3, stride: int = 1, relu: bool = False, normalised: bool = True
) -> Any:
    x = keras.layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        kernel_initializer="he_normal",
    )(x)
    if normalised:
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
    return keras.layers.ReLU()(x) if relu else x
