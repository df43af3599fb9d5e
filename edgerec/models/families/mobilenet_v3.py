"""MobileNet V3 Small and Large (arXiv:1905.02244), and their minimalistic variants.

The Keras applications are not used, because they contain preprocessing and TensorFlow operations, which
quantization-aware training does not support.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgerec.models.blocks import conv, depthwise, global_pool, norm, round_to_8, squeeze_excite
from edgerec.recipe import ModelSection

Activation = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Block:
    """Hyperparameters of an inverted residual block.

    Attributes:
        channels: number of output channels at width 1.
        expand: expansion factor: channels of the depthwise convolution per input channel.
        stride: stride of the depthwise convolution.
        wide: whether the kernel is 5×5 instead of 3×3.
        excite: whether the block has squeeze-and-excitation.
        swish: whether the activation is hard-swish instead of ReLU.
    """

    channels: int
    expand: float
    stride: int = 1
    wide: bool = False
    excite: bool = False
    swish: bool = False


SMALL = (
    _Block(16, 1, 2, excite=True),
    _Block(24, 72 / 16, 2),
    _Block(24, 88 / 24),
    *(_Block(n, e, s, wide=True, excite=True, swish=True) for n, e, s in ((40, 4, 2), (40, 6, 1), (40, 6, 1))),
    *(_Block(n, e, s, wide=True, excite=True, swish=True) for n, e, s in ((48, 3, 1), (48, 3, 1))),
    *(_Block(n, e, s, wide=True, excite=True, swish=True) for n, e, s in ((96, 6, 2), (96, 6, 1), (96, 6, 1))),
)
LARGE = (
    _Block(16, 1),
    _Block(24, 4, 2),
    _Block(24, 3),
    *(_Block(40, 3, s, wide=True, excite=True) for s in (2, 1, 1)),
    *(_Block(80, e, s, swish=True) for e, s in ((6, 2), (2.5, 1), (2.3, 1), (2.3, 1))),
    *(_Block(112, 6, excite=True, swish=True) for _ in range(2)),
    *(_Block(160, 6, s, wide=True, excite=True, swish=True) for s in (2, 1, 1)),
)


def mobilenet_v3_small(keras: Any, x: Any, section: ModelSection) -> Any:
    """MobileNet V3 Small: inverted residuals with squeeze-and-excitation; ``width`` is the width multiplier α."""
    return _features(keras, x, section, SMALL)


def mobilenet_v3_large(keras: Any, x: Any, section: ModelSection) -> Any:
    """MobileNet V3 Large: inverted residuals with squeeze-and-excitation; ``width`` is the width multiplier α."""
    return _features(keras, x, section, LARGE)


def mobilenet_v3_small_minimalistic(keras: Any, x: Any, section: ModelSection) -> Any:
    """MobileNet V3 Small with 3×3 kernels and ReLU, without squeeze-and-excitation; supported by all accelerators."""
    return _features(keras, x, section, SMALL, minimalistic=True)


def mobilenet_v3_large_minimalistic(keras: Any, x: Any, section: ModelSection) -> Any:
    """MobileNet V3 Large with 3×3 kernels and ReLU, without squeeze-and-excitation; supported by all accelerators."""
    return _features(keras, x, section, LARGE, minimalistic=True)


def _features(keras: Any, x: Any, section: ModelSection, blocks: tuple[_Block, ...], minimalistic: bool = False) -> Any:
    last = _relu if minimalistic else _hard_swish
    x = last(keras, norm(keras, conv(keras, x, 16, 3, "Conv", stride=2), "Conv_BatchNorm"))
    for number, block in enumerate(blocks):
        name = f"expanded_conv_{number}_" if number else "expanded_conv_"
        y = _inverted(
            keras, x, block, round_to_8(block.channels * section.width), name, expand=number > 0, plain=minimalistic
        )
        x = keras.layers.Add()([x, y]) if block.stride == 1 and x.shape[-1] == y.shape[-1] else y
    x = norm(keras, conv(keras, x, round_to_8(6 * x.shape[-1]), 1, "Conv_1"), "Conv_1_BatchNorm")
    return global_pool(keras, last(keras, x), section)


def _inverted(keras: Any, x: Any, block: _Block, channels: int, name: str, *, expand: bool, plain: bool) -> Any:
    activation = _hard_swish if block.swish and not plain else _relu
    inner = round_to_8(x.shape[-1] * block.expand)
    if expand:
        x = activation(keras, norm(keras, conv(keras, x, inner, 1, f"{name}expand"), f"{name}expand_BatchNorm"))
    x = depthwise(keras, x, 5 if block.wide and not plain else 3, f"{name}depthwise", stride=block.stride)
    x = activation(keras, norm(keras, x, f"{name}depthwise_BatchNorm"))
    if block.excite and not plain:
        names = f"{name}squeeze_excite_Conv", f"{name}squeeze_excite_Conv_1"
        x = squeeze_excite(keras, x, round_to_8(inner / 4), names, partial(_relu, keras), partial(_hard_sigmoid, keras))
    return norm(keras, conv(keras, x, channels, 1, f"{name}project"), f"{name}project_BatchNorm")


def _relu(keras: Any, x: Any) -> Any:
    return keras.layers.ReLU()(x)


def _hard_swish(keras: Any, x: Any) -> Any:
    return keras.layers.Multiply()([x, _hard_sigmoid(keras, x)])


def _hard_sigmoid(keras: Any, x: Any) -> Any:
    """Apply the hard sigmoid ``relu6(x + 3) / 6``, built from Keras layers that can be saved and trained for int8."""
    layers = keras.layers
    return layers.Rescaling(1 / 6)(layers.ReLU(6.0)(layers.Rescaling(1.0, offset=3.0)(x)))
