"""EfficientNet B0 (arXiv:1905.11946) and EfficientNet V2 B0 (arXiv:2104.00298), without stochastic depth.

The Keras applications are not used, because they contain preprocessing layers, which quantization-aware training does
not support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgerec.models.blocks import conv, depthwise, global_pool, norm, round_to_8, squeeze_excite
from edgerec.recipe import ModelSection


@dataclass(frozen=True)
class _Stage:
    """A stage of equal blocks.

    Attributes:
        blocks: number of blocks.
        channels: number of output channels at width 1.
        expand: expansion factor of the inverted residual.
        kernel: kernel size.
        stride: stride of the first block; all other blocks have stride 1.
        fused: whether a regular convolution replaces both the 1×1 expansion and the depthwise convolution.
    """

    blocks: int
    channels: int
    expand: int
    kernel: int = 3
    stride: int = 2
    fused: bool = False


B0 = (
    _Stage(1, 16, 1, stride=1),
    _Stage(2, 24, 6),
    _Stage(2, 40, 6, kernel=5),
    _Stage(3, 80, 6),
    _Stage(3, 112, 6, kernel=5, stride=1),
    _Stage(4, 192, 6, kernel=5),
    _Stage(1, 320, 6, stride=1),
)
V2_B0 = (
    _Stage(1, 16, 1, stride=1, fused=True),
    _Stage(2, 32, 4, fused=True),
    _Stage(2, 48, 4, fused=True),
    _Stage(3, 96, 4),
    _Stage(5, 112, 6, stride=1),
    _Stage(8, 192, 6),
)


def efficientnet_b0(keras: Any, x: Any, section: ModelSection) -> Any:
    """EfficientNet B0: inverted residuals with squeeze-and-excitation; ``width`` is the paper's width coefficient."""
    return _features(keras, x, section, B0, depthwise_name="dwconv")


def efficientnet_v2_b0(keras: Any, x: Any, section: ModelSection) -> Any:
    """EfficientNet V2 B0: trains faster than ``efficientnet_b0``, because its first stages use regular convolutions."""
    return _features(keras, x, section, V2_B0, depthwise_name="dwconv2")


def _features(keras: Any, x: Any, section: ModelSection, stages: tuple[_Stage, ...], depthwise_name: str) -> Any:
    x = _norm_swish(keras, conv(keras, x, round_to_8(32 * section.width), 3, "stem_conv", stride=2), "stem_bn")
    for number, stage in enumerate(stages, 1):
        for block in range(stage.blocks):
            name, stride = f"block{number}{chr(ord('a') + block)}_", stage.stride if block == 0 else 1
            build = _fused if stage.fused else _separable
            y = build(keras, x, stage, round_to_8(stage.channels * section.width), stride, name, depthwise_name)
            x = keras.layers.Add()([y, x]) if stride == 1 and y.shape[-1] == x.shape[-1] else y
    x = _norm_swish(keras, conv(keras, x, round_to_8(1280 * section.width), 1, "top_conv"), "top_bn")
    return global_pool(keras, x, section)


def _separable(keras: Any, x: Any, stage: _Stage, channels: int, stride: int, name: str, depthwise_name: str) -> Any:
    y, input_channels = x, x.shape[-1]
    if stage.expand != 1:
        y = _norm_swish(
            keras, conv(keras, y, input_channels * stage.expand, 1, f"{name}expand_conv"), f"{name}expand_bn"
        )
    y = depthwise(keras, y, stage.kernel, name + depthwise_name, stride=stride)
    y = _norm_swish(keras, y, f"{name}bn")
    names, activation = (f"{name}se_reduce", f"{name}se_expand"), keras.layers.Activation
    y = squeeze_excite(keras, y, max(1, input_channels // 4), names, activation("swish"), activation("sigmoid"))
    return norm(keras, conv(keras, y, channels, 1, f"{name}project_conv"), f"{name}project_bn")


def _fused(keras: Any, x: Any, stage: _Stage, channels: int, stride: int, name: str, depthwise_name: str) -> Any:
    if stage.expand == 1:
        y = conv(keras, x, channels, stage.kernel, f"{name}project_conv", stride=stride)
        return _norm_swish(keras, y, f"{name}project_bn")
    y = conv(keras, x, x.shape[-1] * stage.expand, stage.kernel, f"{name}expand_conv", stride=stride)
    y = conv(keras, _norm_swish(keras, y, f"{name}expand_bn"), channels, 1, f"{name}project_conv")
    return norm(keras, y, f"{name}project_bn")


def _norm_swish(keras: Any, x: Any, name: str) -> Any:
    return keras.layers.Activation("swish")(norm(keras, x, name))
