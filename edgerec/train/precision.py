"""Rebuild a model with a different dtype policy, such as mixed precision."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Any

from edgerec.train.backend import every_layer, keras

log = logging.getLogger(__name__)

# oneDNN's bfloat16 batch normalization is only fast if the number of channels is a multiple of 16.
FAST_CHANNELS_MULTIPLE = 16


def in_float32(model: Any) -> Any:
    """Return the model itself if all its layers compute in float32, otherwise a float32 copy."""
    policies = {layer.dtype_policy.name for layer in every_layer(model)}
    if policies == {"float32"}:
        return model
    log.info("%s computes in %s: converting the layers to float32", model.name, " and ".join(sorted(policies)))
    return _rebuilt(model, "float32")


def in_training_precision(model: Any) -> Any:
    """Rebuild a model with the global dtype policy, which :func:`prepare` sets from ``train.mixed_precision``.

    For numerical stability, the last two layers (logits and scores) stay in float32. On a CPU, two more kinds of layers
    stay in float32, because bfloat16 makes them slower: batch normalization whose number of channels is not a multiple
    of 16, and all layers of a model with depthwise convolutions.
    """
    layers, policy = keras().layers, keras().mixed_precision.global_policy().name
    if policy == "float32":
        return model
    on_cpu = policy == "mixed_bfloat16"
    if on_cpu and any(isinstance(layer, layers.DepthwiseConv2D) for layer in every_layer(model)):
        log.info(
            "%s has depthwise convolutions, which are slower in bfloat16 on a CPU: training in float32", model.name
        )
        return _rebuilt(model, "float32")

    def stays_float32(layer: Any) -> bool:
        if layer in model.layers[-2:] or isinstance(layer, layers.InputLayer):
            return True
        is_normalization = isinstance(layer, layers.BatchNormalization)
        return bool(on_cpu and is_normalization and layer.output_shape[-1] % FAST_CHANNELS_MULTIPLE)

    return _rebuilt(model, policy, {layer.name for layer in every_layer(model) if stays_float32(layer)})


def _rebuilt(model: Any, policy: str, float32_layers: Collection[str] = ()) -> Any:
    def with_policy(value: dict[str, Any]) -> dict[str, Any]:
        if not {"dtype", "name"} <= set(value):
            return value
        return value | {"dtype": "float32" if value["name"] in float32_layers else policy}

    config = json.loads(json.dumps(model.get_config()), object_hook=with_policy)
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy
