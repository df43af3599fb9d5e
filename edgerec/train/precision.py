"""Networks built again to compute in another precision: float32, or halves of it where they are faster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from edgerec.train.keras import keras

log = logging.getLogger(__name__)

# oneDNN's bfloat16 batch normalisation is fast for multiples of so many channels alone: of 24 it takes tenfold.
CHANNELS_TOGETHER = 16


def in_float32(model: Any) -> Any:
    """The model as it is, or built again where some layer computes in another precision."""
    policies = {layer.dtype_policy.name for layer in _layers(model)}
    if policies == {"float32"}:
        return model
    log.info("%s computes in %s; it is taken in float32", model.name, " and ".join(sorted(policies)))
    return _again(model, lambda layer: "float32")


def in_suited(model: Any) -> Any:
    """The model with each layer in the precision in force (``train.mixed_precision``) where that is fast and safe.

    The rest is float32: the last two layers, logits and scores; on a CPU batch normalisation of few channels, and a
    whole network with depthwise convolutions.
    """
    layers, policy = keras().layers, keras().mixed_precision.global_policy().name
    if policy == "float32":
        return model
    on_cpu = policy == "mixed_bfloat16"
    if on_cpu and any(isinstance(layer, layers.DepthwiseConv2D) for layer in _layers(model)):
        log.info("%s has depthwise convolutions, slower in bfloat16 on a CPU: computing in float32", model.name)
        return _again(model, lambda layer: "float32")

    def suited(layer: Any) -> str:
        if layer in model.layers[-2:] or isinstance(layer, layers.InputLayer):
            return "float32"
        if on_cpu and isinstance(layer, layers.BatchNormalization) and layer.output_shape[-1] % CHANNELS_TOGETHER:
            return "float32"
        return str(policy)

    return _again(model, suited)


def _layers(model: Any) -> Iterator[Any]:
    """All layers of a model and of the models in it."""
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)


def _again(model: Any, policy: Callable[[Any], str]) -> Any:
    """The model built again, each layer by the policy that the function names."""
    policies = {layer.name: policy(layer) for layer in _layers(model)}

    def changed(value: dict[str, Any]) -> dict[str, Any]:
        return value | {"dtype": policies.get(value["name"], "float32")} if {"dtype", "name"} <= set(value) else value

    config = json.loads(json.dumps(model.get_config()), object_hook=changed)
    again = type(model).from_config(config)
    again.set_weights(model.get_weights())
    return again
