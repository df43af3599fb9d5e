"""MobileNet V1 (arXiv:1704.04861) and V2 (arXiv:1801.04381), as Keras' applications build them."""

from __future__ import annotations

from typing import Any

from edgerec.contract.recipe import ModelSection
from edgerec.errors import ModelError

# Keras' 0.99 remembers a hundred steps' statistics, which a small data set takes many epochs to fill.
BN_MOMENTUM = 0.9


def mobilenet_v1(keras: Any, x: Any, section: ModelSection) -> Any:
    """Depthwise-separable convolutions; ``width`` is the paper's α."""
    return _features(keras, keras.applications.MobileNet, x, section)


def mobilenet_v2(keras: Any, x: Any, section: ModelSection) -> Any:
    """Inverted residuals with linear bottlenecks; ``width`` is the paper's α."""
    return _features(keras, keras.applications.MobileNetV2, x, section)


def _features(keras: Any, application: Any, x: Any, section: ModelSection) -> Any:
    weights = "imagenet" if section.weights == "imagenet" else None
    try:
        # Called on a tensor, its layers join this graph instead of nesting a model.
        base = application(input_tensor=x, alpha=section.width, include_top=False, weights=weights)
    except ValueError as error:
        raise ModelError(f"{section.arch} with width {section.width:g}: {error}") from None
    except Exception as error:  # Keras raises a bare Exception around every failed download
        if "fetch failure" not in str(error):
            raise
        reason = str(error).rpartition("-- ")[2]
        raise ModelError(
            f"the ImageNet weights of {section.arch} could not be downloaded ({reason}): "
            "connect once, or use --weights none or a file"
        ) from None
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BN_MOMENTUM
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    return keras.layers.Dropout(section.dropout)(x) if section.dropout else x
