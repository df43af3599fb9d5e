"""What several families are built of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgerec.recipe import ModelSection

Layer = Callable[[Any], Any]

# Keras' 0.99 remembers a hundred steps' statistics, which a small data set takes many epochs to fill.
BN_MOMENTUM = 0.9


def eights(count: float) -> int:
    """A multiple of 8, in which vector units count, that is no more than a tenth below (as in MobileNetV2's code)."""
    rounded = max(8, int(count / 8 + 0.5) * 8)
    return rounded if rounded >= 0.9 * count else rounded + 8


def conv(keras: Any, x: Any, channels: int, kernel: int, name: str, *, stride: int = 1, bias: bool = False) -> Any:
    """A convolution that keeps the size, or halves it."""
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
    """A depthwise convolution without a bias that keeps the size, or halves it."""
    return keras.layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=name)(x)


def norm(keras: Any, x: Any, name: str, *, epsilon: float = 1e-3) -> Any:
    """Batch normalisation."""
    return keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=epsilon, name=name)(x)


def excited(keras: Any, x: Any, squeezed: int, names: tuple[str, str], activation: Layer, gate: Layer) -> Any:
    """Channels times what all of them together say of each: squeeze and excitation (arXiv:1709.01507)."""
    y = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = activation(conv(keras, y, squeezed, 1, names[0], bias=True))
    y = gate(conv(keras, y, x.shape[-1], 1, names[1], bias=True))
    return keras.layers.Multiply()([x, y])


def stem(keras: Any, x: Any, names: str, *, channels: int, bias: bool) -> Any:
    """ResNet50's and DenseNet's beginning: a quarter of the size. ``names``: as ``conv1_{}``."""
    layers = keras.layers
    x = layers.ZeroPadding2D(3)(x)  # all around, where "same" has one more at the end
    x = layers.Conv2D(channels, 7, strides=2, use_bias=bias, kernel_initializer="he_normal", name=names.format("conv"))(
        x
    )
    x = layers.ReLU()(norm(keras, x, names.format("bn"), epsilon=1.001e-5))
    return layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))


def pooled(keras: Any, x: Any, section: ModelSection) -> Any:
    """The mean of each channel, and ``model.dropout``."""
    return dropped(keras, keras.layers.GlobalAveragePooling2D()(x), section)


def dropped(keras: Any, x: Any, section: ModelSection) -> Any:
    """``model.dropout``, where there is any."""
    return keras.layers.Dropout(section.dropout)(x) if section.dropout else x
