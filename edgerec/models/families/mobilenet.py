"""MobileNet V1 (arXiv:1704.04861) and MobileNet V2 (arXiv:1801.04381), built by the Keras applications."""

from __future__ import annotations

from typing import Any

from edgerec.errors import ModelError
from edgerec.models.blocks import BN_MOMENTUM, global_pool
from edgerec.recipe import ModelSection


def mobilenet_v1(keras: Any, x: Any, section: ModelSection) -> Any:
    """MobileNet V1: depthwise-separable convolutions; ``width`` is the width multiplier α."""
    return _features(keras, keras.applications.MobileNet, x, section)


def mobilenet_v2(keras: Any, x: Any, section: ModelSection) -> Any:
    """MobileNet V2: inverted residuals with linear bottlenecks; ``width`` is the width multiplier α."""
    return _features(keras, keras.applications.MobileNetV2, x, section)


def _features(keras: Any, application: Any, x: Any, section: ModelSection) -> Any:
    try:
        # Pass input_tensor, so that Keras adds the layers to this graph instead of returning a nested model.
        base = application(input_tensor=x, alpha=section.width, include_top=False, weights=None)
    except ValueError as error:
        raise ModelError(f"{section.arch} with width {section.width:g}: {error}") from None
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BN_MOMENTUM
    return global_pool(keras, base.output, section)
