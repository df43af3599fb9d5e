"""Residual networks (arXiv:1512.03385)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgerec.models.blocks import BN_MOMENTUM, conv, depthwise, global_pool, norm, round_to_8, squeeze_excite, stem
from edgerec.recipe import ModelSection

# Function ``(keras, tensor, channels, stride, name_prefix) -> tensor`` that adds a residual block.
Block = Callable[[Any, Any, int, int, str], Any]

# Batch normalization epsilon of Keras' ResNet50, whose ImageNet weights are loaded.
EPSILON = 1.001e-5


def resnet8(keras: Any, x: Any, section: ModelSection) -> Any:
    """MLPerf Tiny's image classification network: three residual blocks, with 16, 32 and 64 channels."""
    return _resnet(keras, x, section, blocks=1)


def resnet14(keras: Any, x: Any, section: ModelSection) -> Any:
    """``resnet8`` with two residual blocks per stage; at ``width`` 0.66 about as large as ``resnet8``, but deeper."""
    return _resnet(keras, x, section, blocks=2)


def resnet14_wide(keras: Any, x: Any, section: ModelSection) -> Any:
    """``resnet14`` with 32, 64 and 96 channels, i.e. more channels in the early stages; about 0.5 MB in int8."""
    return _resnet(keras, x, section, blocks=2, channels=(32, 64, 96))


def resnet20(keras: Any, x: Any, section: ModelSection) -> Any:
    """The smallest CIFAR-10 network of the ResNet paper: ``resnet8`` with three residual blocks per stage."""
    return _resnet(keras, x, section, blocks=3)


def se_resnet16(keras: Any, x: Any, section: ModelSection) -> Any:
    """Residual stages of 32, 64 and 80 channels, the last two with squeeze-and-excitation; about 0.5 MB in int8."""
    return _residual_stages(
        keras, x, section, ((32, 2, _plain_block), (64, 3, _squeeze_excite_block), (80, 2, _squeeze_excite_block))
    )


def ds_resnet(keras: Any, x: Any, section: ModelSection) -> Any:
    """Ten residual blocks of depthwise-separable convolutions, with 32, 64 and 112 channels; < 100 KB in int8."""
    return _residual_stages(
        keras, x, section, tuple((n, count, _separable_block) for n, count in ((32, 2), (64, 5), (112, 3)))
    )


def _residual_stages(keras: Any, x: Any, section: ModelSection, stages: tuple[tuple[int, int, Block], ...]) -> Any:
    """Add a convolution and residual stages. Each stage except the first halves height and width.

    ``stages`` contains the number of channels, the number of blocks, and the block function of each stage.
    """
    x = keras.layers.ReLU()(norm(keras, conv(keras, x, round_to_8(stages[0][0] * section.width), 3, "conv"), "bn"))
    for stage, (channels, count, block) in enumerate(stages, 1):
        for number in range(1, count + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            x = block(keras, x, round_to_8(channels * section.width), stride, f"stage{stage}_block{number}")
    return global_pool(keras, x, section)


def _plain_block(keras: Any, x: Any, channels: int, stride: int, name: str) -> Any:
    return _add_shortcut(keras, x, _two_convs(keras, x, channels, stride, name), stride, name)


def _squeeze_excite_block(keras: Any, x: Any, channels: int, stride: int, name: str) -> Any:
    relu, sigmoid = keras.layers.ReLU(), keras.layers.Activation("sigmoid")
    y = _two_convs(keras, x, channels, stride, name)
    y = squeeze_excite(keras, y, channels // 8, (f"{name}_squeeze", f"{name}_excite"), relu, sigmoid)
    return _add_shortcut(keras, x, y, stride, name)


def _two_convs(keras: Any, x: Any, channels: int, stride: int, name: str) -> Any:
    x = norm(keras, conv(keras, x, channels, 3, f"{name}_1_conv", stride=stride), f"{name}_1_bn")
    return norm(keras, conv(keras, keras.layers.ReLU()(x), channels, 3, f"{name}_2_conv"), f"{name}_2_bn")


def _add_shortcut(keras: Any, x: Any, y: Any, stride: int, name: str) -> Any:
    if stride != 1:
        x = conv(keras, x, y.shape[-1], 1, f"{name}_0_conv", stride=stride, bias=True)
    return keras.layers.ReLU()(keras.layers.Add()([x, y]))


def _separable_block(keras: Any, x: Any, channels: int, stride: int, name: str) -> Any:
    relu = keras.layers.ReLU
    y = relu()(norm(keras, depthwise(keras, x, 3, f"{name}_depthwise", stride=stride), f"{name}_depthwise_bn"))
    y = norm(keras, conv(keras, y, channels, 1, f"{name}_pointwise"), f"{name}_pointwise_bn")
    return relu()(keras.layers.Add()([x, y]) if stride == 1 else y)


def resnet50(keras: Any, x: Any, section: ModelSection) -> Any:
    """ResNet-50: sixteen bottleneck blocks with up to 2,048 channels."""
    x = stem(keras, x, "conv1_{}", channels=round_to_8(64 * section.width), bias=True)
    for stage, (channels, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for block in range(1, count + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            x = _bottleneck(
                keras, x, round_to_8(channels * section.width), stride, block == 1, f"conv{stage}_block{block}"
            )
    return global_pool(keras, x, section)


def _bottleneck(keras: Any, x: Any, channels: int, stride: int, projected: bool, name: str) -> Any:
    relu = keras.layers.ReLU
    y = relu()(_conv_norm(keras, x, channels, 1, f"{name}_1", stride))
    y = relu()(_conv_norm(keras, y, channels, 3, f"{name}_2"))
    y = _conv_norm(keras, y, 4 * channels, 1, f"{name}_3")
    if projected:
        x = _conv_norm(keras, x, 4 * channels, 1, f"{name}_0", stride)
    return relu()(keras.layers.Add()([x, y]))


def _conv_norm(keras: Any, x: Any, channels: int, kernel: int, name: str, stride: int = 1) -> Any:
    x = conv(keras, x, channels, kernel, f"{name}_conv", stride=stride, bias=True)
    return norm(keras, x, f"{name}_bn", epsilon=EPSILON)


def _resnet(keras: Any, x: Any, section: ModelSection, blocks: int, channels: tuple[int, ...] = (16, 32, 64)) -> Any:
    counts = [round_to_8(n * section.width) for n in channels]
    x = _conv(keras, x, counts[0], relu=True)
    for stage, count in enumerate(counts):
        for block in range(blocks):
            x = _block(keras, x, count, stride=2 if stage and not block else 1)
    return global_pool(keras, x, section)


def _block(keras: Any, x: Any, channels: int, stride: int) -> Any:
    y = _conv(keras, x, channels, stride=stride, relu=True)
    y = _conv(keras, y, channels)
    if stride != 1:
        x = _conv(keras, x, channels, kernel=1, stride=stride, batch_norm=False)
    x = keras.layers.Add()([x, y])
    return keras.layers.ReLU()(x)


def _conv(
    keras: Any, x: Any, channels: int, *, kernel: int = 3, stride: int = 1, relu: bool = False, batch_norm: bool = True
) -> Any:
    x = keras.layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        kernel_initializer="he_normal",
    )(x)
    if batch_norm:
        x = keras.layers.BatchNormalization(momentum=BN_MOMENTUM)(x)
    return keras.layers.ReLU()(x) if relu else x
