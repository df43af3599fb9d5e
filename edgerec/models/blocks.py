"""Layers and blocks shared by several architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgerec.recipe import ModelSection

Layer = Callable[[Any], Any]

# Batch normalization momentum for small data sets, which have only a few training steps per epoch.
# Keras' default momentum of 0.99 would need hundreds of steps to adapt the moving averages.
BN_MOMENTUM = 0.9


def round_to_8(count: float) -> int:
    """Round a number of channels to a multiple of 8, because vector units process 8 channels at a time.

    The result is at least 90 % of ``count``, as in the reference code of MobileNetV2.
    """
    rounded = max(8, int(count / 8 + 0.5) * 8)
    return rounded if rounded >= 0.9 * count else rounded + 8


def conv(keras: Any, x: Any, channels: int, kernel: int, name: str, *, stride: int = 1, bias: bool = False) -> Any:
    """Add a convolution, which divides height and width by ``stride``."""
    return keras.layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        use_bias=bias,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def depthwise(keras: Any, x: Any, kernel: int, name: str, *, stride: int = 1) -> Any:
    """Add a depthwise convolution without bias, which divides height and width by ``stride``."""
    return keras.layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=name)(x)


def norm(keras: Any, x: Any, name: str, *, epsilon: float = 1e-3) -> Any:
    """Add batch normalization."""
    return keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=epsilon, name=name)(x)


def squeeze_excite(keras: Any, x: Any, squeezed: int, names: tuple[str, str], activation: Layer, gate: Layer) -> Any:
    """Add squeeze-and-excitation (arXiv:1709.01507): multiply each channel by a factor computed from all channel means.

    Args:
        keras: the Keras module.
        x: tensor ``(batch, height, width, channels)``.
        squeezed: number of channels of the first 1×1 convolution.
        names: names of the two convolutions.
        activation: activation after the first convolution.
        gate: activation after the second convolution.
    """
    y = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = activation(conv(keras, y, squeezed, 1, names[0], bias=True))
    y = gate(conv(keras, y, x.shape[-1], 1, names[1], bias=True))
    return keras.layers.Multiply()([x, y])


def stem(keras: Any, x: Any, names: str, *, channels: int, bias: bool) -> Any:
    """Add the stem of ResNet50 and DenseNet, which divides height and width by 4.

    ``names`` is the pattern of the layer names, e.g. ``conv1_{}``.
    """
    layers = keras.layers
    x = layers.ZeroPadding2D(3)(x)  # padding="same" would not pad all sides equally
    x = layers.Conv2D(channels, 7, strides=2, use_bias=bias, kernel_initializer="he_normal", name=names.format("conv"))(
        x
    )
    x = layers.ReLU()(norm(keras, x, names.format("bn"), epsilon=1.001e-5))
    return layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))


def global_pool(keras: Any, x: Any, section: ModelSection) -> Any:
    """Add global average pooling, followed by dropout with the rate ``model.dropout``."""
    return dropout(keras, keras.layers.GlobalAveragePooling2D()(x), section)


def dropout(keras: Any, x: Any, section: ModelSection) -> Any:
    """Add a dropout layer if ``model.dropout`` is greater than 0."""
    return keras.layers.Dropout(section.dropout)(x) if section.dropout else x
