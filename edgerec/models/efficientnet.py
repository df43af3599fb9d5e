"""EfficientNet B0 (arXiv:1905.11946) and V2 B0 (arXiv:2104.00298), without their random dropping of whole blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgerec.models.blocks import conv, depthwise, eights, excited, norm, pooled
from edgerec.recipe import ModelSection


@dataclass(frozen=True)
class _Stage:
    """Blocks alike but for the first, which has the stride. A fused one has one convolution for two."""

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
    """Inverted residuals with squeeze-and-excite and swish, found by search; ``width`` is the paper's."""
    return _features(keras, x, section, B0, depthwise_name="dwconv")


def efficientnet_v2_b0(keras: Any, x: Any, section: ModelSection) -> Any:
    """efficientnet_b0's successor, with whole convolutions where pictures are large: quicker to train."""
    return _features(keras, x, section, V2_B0, depthwise_name="dwconv2")


def _features(keras: Any, x: Any, section: ModelSection, stages: tuple[_Stage, ...], depthwise_name: str) -> Any:
    x = _rectified(keras, conv(keras, x, eights(32 * section.width), 3, "stem_conv", stride=2), "stem_bn")
    for number, stage in enumerate(stages, 1):
        for block in range(stage.blocks):
            name, stride = f"block{number}{chr(ord('a') + block)}_", stage.stride if block == 0 else 1
            build = _fused if stage.fused else _separable
            y = build(keras, x, stage, eights(stage.channels * section.width), stride, name, depthwise_name)
            x = keras.layers.Add()([y, x]) if stride == 1 and y.shape[-1] == x.shape[-1] else y
    x = _rectified(keras, conv(keras, x, eights(1280 * section.width), 1, "top_conv"), "top_bn")
    return pooled(keras, x, section)


def _separable(keras: Any, x: Any, stage: _Stage, channels: int, stride: int, name: str, depthwise_name: str) -> Any:
    y, given = x, x.shape[-1]
    if stage.expand != 1:
        y = _rectified(keras, conv(keras, y, given * stage.expand, 1, f"{name}expand_conv"), f"{name}expand_bn")
    y = depthwise(keras, y, stage.kernel, name + depthwise_name, stride=stride)
    y = _rectified(keras, y, f"{name}bn")
    names, activation = (f"{name}se_reduce", f"{name}se_expand"), keras.layers.Activation
    y = excited(keras, y, max(1, given // 4), names, activation("swish"), activation("sigmoid"))
    return norm(keras, conv(keras, y, channels, 1, f"{name}project_conv"), f"{name}project_bn")


def _fused(keras: Any, x: Any, stage: _Stage, channels: int, stride: int, name: str, depthwise_name: str) -> Any:
    if stage.expand == 1:
        y = conv(keras, x, channels, stage.kernel, f"{name}project_conv", stride=stride)
        return _rectified(keras, y, f"{name}project_bn")
    y = conv(keras, x, x.shape[-1] * stage.expand, stage.kernel, f"{name}expand_conv", stride=stride)
    y = conv(keras, _rectified(keras, y, f"{name}expand_bn"), channels, 1, f"{name}project_conv")
    return norm(keras, y, f"{name}project_bn")


def _rectified(keras: Any, x: Any, name: str) -> Any:
    return keras.layers.Activation("swish")(norm(keras, x, name))
