"""Rebuild Keras 3 models with tf_keras layers, as required by tensorflow-model-optimization.

tf_keras cannot read Keras 3 files, and neither package has a converter.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import re
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.importing.equivalence import check_same_outputs
from edgerec.importing.indexing import indexed, selected, stacked
from edgerec.importing.layer_allowlist import (
    ACTIVATIONS,
    ARITHMETIC,
    AUGMENTATION,
    FUNCTIONS,
    INDEXING,
    LAYERS,
    MODELS,
    NO_EFFECT,
)
from edgerec.train.backend import keras
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Keras 3 layer options that tf_keras lacks and that do not affect the outputs.
_UNUSED = {"dtype", "seed", "fill_mode", "fill_value", "use_cudnn", "value_range", "zero_output_for_mask"}
# Options of ``renorm`` have no effect, because edgerec does not support ``renorm`` itself.
_UNUSED |= {"renorm_clipping", "renorm_momentum"}


def from_keras3(model: Any, where: str) -> Any:
    """Rebuild a Keras 3 model with tf_keras layers, in float32, with the same weights.

    Augmentation layers are left out. Layers replace arithmetic in the graph, and activations that tf_keras lacks or
    defines differently (``relu6``, ``hard_silu``, ``hard_sigmoid``). The outputs for random images are compared with
    the original's.

    Raises:
        ModelError: a layer or option is not supported, or the outputs differ from the original's.
    """
    loaded: list[tuple[Any, Any]] = []
    built = _rebuild(model, where, loaded)
    for layer, original in loaded:
        layer.set_weights([np.asarray(weight, np.float32) for weight in original.get_weights()])
    check_same_outputs(_in_float32(model), built, f"cannot convert {where} to tf_keras")
    return built


def _in_float32(model: Any) -> Any:
    """Float16 and bfloat16 rounding must not affect the comparison of the outputs."""
    keras3 = require("keras")
    config = json.dumps(keras3.saving.serialize_keras_object(model))
    changed = json.loads(config, object_hook=_float32_policy)
    if changed == json.loads(config):
        return model
    converted = keras3.saving.deserialize_keras_object(changed, safe_mode=True)
    converted.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    return converted


def _float32_policy(value: dict[str, Any]) -> dict[str, Any]:
    if str(value.get("class_name")).endswith("DTypePolicy"):
        return value | {"class_name": "DTypePolicy", "config": {"name": "float32"}}
    if isinstance(dtype := value.get("dtype"), str) and re.fullmatch(r"(mixed_)?b?float\d+", dtype):
        return value | {"dtype": "float32"}
    return value


def _rebuild(original: Any, where: str, loaded: list[tuple[Any, Any]]) -> Any:
    """Rebuild a Keras 3 model, and append each pair (new layer, original layer) to ``loaded``."""
    if type(original).__name__ == "Sequential":
        if not original.built:
            raise ModelError(
                f"{where}: {original.name} has no input size; add an Input(shape) and save the model again"
            )
        x = inputs = keras().Input(original.input_shape[1:])
        for layer in original.layers:
            x = _translated(layer, where, loaded)(x)
        return keras().Model(inputs, x, name=original.name)
    translated: dict[int, Any] = {}

    def operation(layer: Any) -> Any:
        # A shared layer is translated only once, so that it stays shared.
        if id(layer) not in translated:
            translated[id(layer)] = _translated(layer, where, loaded)
        return lambda *args, **options: translated[id(layer)](*args, **_call_options(options, layer.name, where))

    flatten = require("keras").tree.flatten
    inputs = [keras().Input(t.shape[1:], name=t._keras_history.operation.name) for t in original.inputs]
    outputs = flatten(original._run_through_graph(inputs, operation_fn=operation))
    return keras().Model(*(ends[0] if len(ends) == 1 else ends for ends in (inputs, outputs)), name=original.name)


def _translated(original: Any, where: str, loaded: list[tuple[Any, Any]]) -> Any:
    kind = type(original).__name__
    if kind in MODELS:
        return _rebuild(original, where, loaded)
    serialized = require("keras").saving.serialize_keras_object(original)
    config = serialized["config"]
    if ".ops." in str(serialized["module"]):
        if kind in INDEXING:
            return _indexing(kind, config, where)
        return _arithmetic(kind, config, where) if kind in ARITHMETIC else _function(kind, config, where)
    if kind in AUGMENTATION:
        log.info("%s: leaving out %s (%s), which changes images during training only", where, config["name"], kind)
        return lambda x, **_: x
    if kind not in LAYERS or not hasattr(keras().layers, kind):
        raise ModelError(f"{where}: layer {config['name']!r} is a {kind}, which has no equivalent in tf_keras")
    if kind == "Activation":
        return lambda x, **_: _activation(x, _name_of(config["activation"]), config["name"], where)
    after = ""
    if "activation" in config and _name_of(config["activation"]) not in ACTIVATIONS:
        after, config = _name_of(config["activation"]), config | {"activation": "linear"}
    layer = getattr(keras().layers, kind).from_config(_adapted(kind, config, where))
    loaded.append((layer, original))
    if not after:
        return layer
    return lambda x, **options: _activation(layer(x, **options), after, f"{layer.name}_{after}", where)


def _adapted(kind: str, config: dict[str, Any], where: str) -> dict[str, Any]:
    known = {"name", "trainable"} | inspect.signature(getattr(keras().layers, kind).__init__).parameters.keys()
    adapted = {}
    for key, value in config.items():
        # Initializers and constraints are not needed, because the weights are copied.
        if key.endswith(("_initializer", "_constraint")):
            continue
        if kind == "LeakyReLU" and key == "negative_slope":
            adapted["alpha"] = value
        elif key.endswith("activation"):
            if _name_of(value) not in ACTIVATIONS:
                raise ModelError(
                    f"{where}: the {key} {_name_of(value)!r} of layer {config['name']!r} has no equivalent in tf_keras"
                )
            adapted[key] = ACTIVATIONS[_name_of(value)]
        elif isinstance(value, dict) and value.get("class_name") in LAYERS:
            inner = _adapted(value["class_name"], value["config"], where)
            adapted[key] = {"class_name": value["class_name"], "config": inner}
        elif key in known and key != "dtype":
            adapted[key] = value
        elif key not in _UNUSED and value not in NO_EFFECT:
            raise ModelError(
                f"{where}: layer {config['name']!r} uses the option {key}={value!r}, which tf_keras does not support"
            )
    return adapted


def _activation(x: Any, name: str, layer: str, where: str) -> Any:
    """Apply an activation as defined by ``keras.activations`` in Keras 3, using tf_keras layers."""
    layers = keras().layers
    if name in ACTIVATIONS:
        return layers.Activation(ACTIVATIONS[name], name=layer)(x)
    if name == "relu6":
        return layers.ReLU(6.0, name=layer)(x)
    if name == "leaky_relu":
        return layers.LeakyReLU(0.2, name=layer)(x)
    if name in ("hard_sigmoid", "hard_silu", "hard_swish"):
        gate = layers.Rescaling(1.0, offset=3.0, name=f"{layer}_shift")(x)
        gate = layers.ReLU(6.0, name=f"{layer}_relu6")(gate)
        if name == "hard_sigmoid":
            return layers.Rescaling(1 / 6, name=layer)(gate)
        gate = layers.Rescaling(1 / 6, name=f"{layer}_gate")(gate)
        return layers.Multiply(name=layer)([x, gate])
    raise ModelError(f"{where}: the activation {name!r} of layer {layer!r} has no equivalent in tf_keras")


def _function(kind: str, config: dict[str, Any], where: str) -> Any:
    if config.get("axis", -1) != -1:
        raise ModelError(
            f"{where}: the operator {config['name']!r} uses axis {config['axis']}, but only the last axis is supported"
        )
    return lambda x, **_: _activation(x, FUNCTIONS[kind], config["name"], where)


def _arithmetic(kind: str, config: dict[str, Any], where: str) -> Any:
    """Return a function that computes an arithmetic operation, such as ``x + y`` or ``1 - x``, with a Keras layer."""
    layers, name = keras().layers, config["name"]

    def apply(x1: Any, x2: Any) -> Any:
        constants = [not hasattr(x, "_keras_history") for x in (x1, x2)]
        if not any(constants) and "Divide" not in kind:
            return getattr(layers, kind)(name=name)([x1, x2])
        x, number = (x2, x1) if constants[0] else (x1, x2)
        c = None if all(constants) or not any(constants) else _by_channel(number, x)
        if c is None or ("Divide" in kind and constants[0]):
            raise ModelError(
                f"{where}: the operator {name!r} ({kind}) has no equivalent Keras layer: replace it with Keras "
                "layers and save the model again"
            )
        scale, offset = {
            "Add": (1.0, c),
            "Subtract": (-1.0, c) if constants[0] else (1.0, -c),
            "Multiply": (c, 0.0),
        }.get(kind, (1 / c, 0.0))
        return layers.Rescaling(np.asarray(scale).tolist(), np.asarray(offset).tolist(), name=name)(x)

    return apply


def _by_channel(value: Any, x: Any) -> Any:
    """Reshape a constant to a scalar or to one value per channel of ``x``. Return None if this is not possible."""
    constant = np.asarray(value, np.float64)
    if constant.size == 1:
        return constant.reshape(())
    return constant.reshape(-1) if constant.shape[-1:] == (constant.size,) == (x.shape[-1],) else None


def _indexing(kind: str, config: dict[str, Any], where: str) -> Any:
    """Return a function that computes an indexing operation (``x[…]``, ``stack`` or ``flip``) with Keras layers."""
    count = itertools.count(1)
    name = config["name"]

    def free() -> str:
        number = next(count)
        return str(name if number == 1 else f"{name}_{number}")

    def apply(x: Any, items: Any = None) -> Any:
        if kind == "Stack":
            result = stacked(x, config.get("axis", 0), free)
        elif kind == "GetItem":
            result = indexed(x, items, free)
        else:
            last = config.get("axis") in (-1, len(x.shape) - 1)
            result = selected(x, list(range(x.shape[-1]))[::-1], free) if last else None
        if result is None:
            raise ModelError(
                f"{where}: the operator {name!r} ({kind}) is not supported, because it neither selects channels nor "
                "crops the image: replace the operator with Keras layers and save the model again"
            )
        return result

    return apply


def _name_of(activation: Any) -> str:
    if isinstance(activation, dict):
        return str(activation["config"] if activation["class_name"] == "function" else activation["class_name"])
    return str(activation or "linear")


def _call_options(options: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    options = {key: value for key, value in options.items() if value is not None}
    if unsupported := options.keys() - {"training", "x1", "x2"}:
        raise ModelError(
            f"{where}: {name!r} is called with the argument {min(unsupported)!r}, which edgerec does not support: "
            "remove the argument and save the model again"
        )
    return options
