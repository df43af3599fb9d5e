"""Networks built again to compute in another precision: float32, or halves of it where they are faster."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Any

from edgerec.train.backend import every_layer, keras

log = logging.getLogger(__name__)

# oneDNN's bfloat16 batch normalisation is fast for multiples of so many channels alone: 24 take over ten times as long.
CHANNELS_TOGETHER = 16


def in_float32(model: Any) -> Any:
    """The model as it is, or built again where some layer computes in another precision."""
    policies = {layer.dtype_policy.name for layer in every_layer(model)}
    if policies == {"float32"}:
        return model
    log.info("%s computes in %s; it is taken in float32", model.name, " and ".join(sorted(policies)))
    return _again(model, "float32")


def in_training_precision(model: Any) -> Any:
    """The model with each layer in the precision in force (``train.mixed_precision``) where that is fast and safe.

    The rest is float32: the last two layers, logits and scores; on a CPU batch normalisation of few channels, and a
    whole network with depthwise convolutions.
    """
    layers, policy = keras().layers, keras().mixed_precision.global_policy().name
    if policy == "float32":
        return model
    on_cpu = policy == "mixed_bfloat16"
    if on_cpu and any(isinstance(layer, layers.DepthwiseConv2D) for layer in every_layer(model)):
        log.info("%s has depthwise convolutions, slower in bfloat16 on a CPU: computing in float32", model.name)
        return _again(model, "float32")

    def stays(layer: Any) -> bool:
        if layer in model.layers[-2:] or isinstance(layer, layers.InputLayer):
            return True
        normalises = isinstance(layer, layers.BatchNormalization)
        return bool(on_cpu and normalises and layer.output_shape[-1] % CHANNELS_TOGETHER)

    return _again(model, policy, {layer.name for layer in every_layer(model) if stays(layer)})


def _again(model: Any, policy: str, kept: Collection[str] = ()) -> Any:
    """The model built again by the policy, cells inside of layers too; the layers named in ``kept`` in float32."""

    def changed(value: dict[str, Any]) -> dict[str, Any]:
        if not {"dtype", "name"} <= set(value):
            return value
        return value | {"dtype": "float32" if value["name"] in kept else policy}

    config = json.loads(json.dumps(model.get_config()), object_hook=changed)
    again = type(model).from_config(config)
    again.set_weights(model.get_weights())
    return again
