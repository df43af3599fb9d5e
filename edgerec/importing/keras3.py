"""Convert models between Keras 3, the current version, and tf_keras, which tensorflow-model-optimization needs."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.importing.indexing import indexed, selected, stacked
from edgerec.importing.layer_allowlist import ACTIVATIONS, ARITHMETIC, AUGMENTATION, FUNCTIONS, INDEXING, LAYERS, MODELS
from edgerec.train.backend import keras, reported_as
from edgerec.train.precision import in_float32
from edgerec.utils.atomic import replacing
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Largest difference between the outputs of two builds of one model, relative to the largest output. Float32 rounding
# stays far below it, and a wrong layer exceeds it by far.
TOLERANCE = 1e-4

# Keys of Keras 3 that tf_keras layers do not have, and that do not change outputs.
_UNUSED = {"dtype", "seed", "fill_mode", "fill_value", "use_cudnn", "value_range", "zero_output_for_mask"}
_UNUSED |= {"renorm_clipping", "renorm_momentum"}  # only have an effect with renorm, which is not supported
_NO_EFFECT = (None, False, "auto", "channels_last")


def write_keras3(model: Any, path: Path) -> None:
    """Write a tf_keras model as a ``.keras`` file that Keras 3's ``keras.models.load_model`` opens.

    Raises:
        ModelError: Keras 3 does not have a layer, or the outputs differ.
    """
    keras3, model = require("keras"), in_float32(model)
    with reported_as(f"{model.name} cannot be written for Keras 3"):
        config = json.loads(json.dumps(model.get_config()), object_hook=_for_keras3)
        kind = keras3.Sequential if isinstance(model, keras().Sequential) else keras3.Model
        converted = kind.from_config(config)
        _copy_weights(model, converted)
        _compare(model, converted, model.name)
    with replacing(path) as partial:
        converted.save(partial)


def _copy_weights(model: Any, converted: Any) -> None:
    """Copy the weights layer by layer, because Keras 2 and 3 may order the weights of a nested model differently."""
    for layer in model.layers:
        if isinstance(layer, keras().Model):
            _copy_weights(layer, converted.get_layer(layer.name))
        else:
            converted.get_layer(layer.name).set_weights(layer.get_weights())


def offer_keras3(model: Any, path: Path) -> None:
    """Write the model by :func:`write_keras3` if Keras 3 supports all of its layers; otherwise log the reason."""
    try:
        write_keras3(model, path)
    except ModelError as error:
        log.info("%s was not written: %s", path.name, error)


def from_keras3(model: Any, where: str) -> Any:
    """Rebuild a Keras 3 model with the layers of tf_keras, in float32, with the same weights.

    Augmentation layers are left out. Layers replace the activations that tf_keras does not have or defines differently
    (``relu6``, ``hard_silu``, ``hard_sigmoid``) and the arithmetic in the graph. The outputs for random images are
    compared with those of the original.

    Raises:
        ModelError: a layer or option is not supported, or the outputs differ from those of the original.
    """
    loaded: list[tuple[Any, Any]] = []
    built = _rebuild(model, where, loaded)
    for layer, original in loaded:
        layer.set_weights([np.asarray(weight, np.float32) for weight in original.get_weights()])
    _compare(_in_float32(model), built, where)
    return built


def _in_float32(model: Any) -> Any:
    """Return a Keras 3 model in float32, so that rounding to float16 or bfloat16 does not affect the comparison."""
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


def _for_keras3(value: dict[str, Any]) -> dict[str, Any]:
    """Convert a serialized object of tf_keras to the form that Keras 3 expects."""
    kind, config = value.get("class_name"), value.get("config")
    if kind in MODELS:
        module = "keras.src.models.functional" if kind == "Functional" else "keras"
        return value | {"module": module, "registered_name": None}
    if "input_layers" in value:  # Keras 3 expects a single input or output without a list
        value = _with_keras3_calls(value)
        ends = {key: value[key][0] for key in ("input_layers", "output_layers") if len(value[key]) == 1}
        return value | ends
    if kind not in LAYERS or not isinstance(config, dict):
        return value
    renamed = {"alpha": "negative_slope"} if kind == "LeakyReLU" else {"batch_input_shape": "batch_shape"}
    known = {"name", "trainable", "dtype"} | inspect.signature(getattr(require("keras").layers, kind)).parameters.keys()
    adapted = {}
    for key, option in config.items():
        key = renamed.get(key, key)
        if key == "rng_type" or (key == "batch_shape" and kind != "InputLayer"):
            continue  # rng_type concerns random states, and InputLayer repeats the shape
        if kind == "BatchNormalization" and key == "axis":
            option = option[0] if isinstance(option, list) else option
        if key in known or not (option in _NO_EFFECT or (key, option) == ("groups", 1) or key.endswith("_initializer")):
            adapted[key] = option
    return value | {"config": adapted}


def _with_keras3_calls(functional: dict[str, Any]) -> dict[str, Any]:
    """Convert the call numbers of nested models from Keras 2 to Keras 3.

    Keras 2 counts the calls of a nested model from 1, because the construction of the nested model is call 0. Keras 3
    counts from 0, unless the output of a nested functional model is an output of the whole model.
    """
    nested = {layer["name"]: layer["class_name"] for layer in functional["layers"] if layer["class_name"] in MODELS}

    def counted(value: Any, names: Collection[str]) -> Any:
        if not isinstance(value, list):
            return value
        if len(value) >= 3 and isinstance(value[0], str) and value[0] in names and isinstance(value[1], int):
            return [value[0], max(0, value[1] - 1), *value[2:]]
        return [counted(item, names) for item in value]

    layers = [layer | {"inbound_nodes": counted(layer["inbound_nodes"], nested)} for layer in functional["layers"]]
    chains = [name for name, kind in nested.items() if kind == "Sequential"]
    return functional | {"layers": layers, "output_layers": counted(functional["output_layers"], chains)}


def _compare(model: Any, converted: Any, where: str) -> None:
    shape = model.input_shape
    if not isinstance(shape, tuple) or None in shape[1:] or isinstance(model.output_shape, list):
        return  # several inputs or outputs, or an unknown size: the checks of the classifier report this
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (4, *shape[1:])).astype(np.float32)
    images[2:] *= 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras 3 warns about a plain array if the model's inputs have names
        expected, actual = (np.asarray(m(images, training=False), np.float64) for m in (model, converted))
    difference = float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))
    if not difference <= TOLERANCE and np.isfinite(expected).all():
        raise ModelError(
            f"{where} cannot be converted, because the outputs of the rebuilt model differ by up to {difference:.2g}"
        )
    log.debug("%s: the outputs of the rebuilt model differ by up to %.2g", where, difference)


def _rebuild(original: Any, where: str, loaded: list[tuple[Any, Any]]) -> Any:
    """Return the tf_keras model; pairs of (new layer, original layer with the weights) are appended to ``loaded``."""
    config = original.get_config()
    if type(original).__name__ == "Sequential":
        return _rebuild_chain(original, config["layers"], where, loaded)
    layers = {entry["name"]: entry for entry in config["layers"]}
    tensors: dict[tuple[str, int, int], Any] = {}
    calls = {}
    for name, entry in layers.items():
        if entry["class_name"] == "InputLayer":
            tensors[name, 0, 0] = keras().Input(entry["config"]["batch_shape"][1:], name=name)
        else:
            layer = None if _is_operator(entry) else original.get_layer(name)
            calls[name] = _translated(entry, layer, where, loaded)
    waiting = [(name, i, node) for name in calls for i, node in enumerate(layers[name]["inbound_nodes"])]
    while waiting:
        ready = [call for call in waiting if tensors.keys() >= set(_histories(call[2]))]
        if not ready:
            raise ModelError(f"{where}: the layers of {original.name} are not connected")
        for name, i, node in ready:
            results = calls[name](*_resolved(node["args"], tensors), **_options(node, name, where, tensors))
            for k, result in enumerate(results if isinstance(results, list | tuple) else [results]):
                tensors[name, i, k] = result
        waiting = [call for call in waiting if call not in ready]
    for name, entry in layers.items():  # calls of functional models in the outputs are counted from 1
        if entry["class_name"] in MODELS and entry["class_name"] != "Sequential":
            own = {key: tensor for key, tensor in tensors.items() if key[0] == name}
            tensors |= {(name, i + 1, k): tensor for (_, i, k), tensor in own.items()}
    inputs, outputs = (_ends(config[key], tensors) for key in ("input_layers", "output_layers"))
    return keras().Model(inputs, outputs, name=original.name)


def _rebuild_chain(original: Any, entries: list[Any], where: str, loaded: list[tuple[Any, Any]]) -> Any:
    if not original.built:
        raise ModelError(f"{where}: {original.name} has no input size: add an Input(shape) and save the model again")
    x = inputs = keras().Input(original.input_shape[1:])
    entries = [entry for entry in entries if entry["class_name"] != "InputLayer"]
    for entry, layer in zip(entries, original.layers, strict=True):
        x = _translated(entry, layer, where, loaded)(x)
    return keras().Model(inputs, x, name=original.name)


def _translated(entry: dict[str, Any], original: Any, where: str, loaded: list[tuple[Any, Any]]) -> Any:
    """Return a function of tensors that is equivalent to the serialized layer or operator ``entry``."""
    kind, config = entry["class_name"], entry["config"]
    if _is_operator(entry):
        if kind in INDEXING:
            return _indexing(kind, config, where)
        return _arithmetic(kind, config, where) if kind in ARITHMETIC else _function(kind, config, where)
    if kind in MODELS:
        return _rebuild(original, where, loaded)
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


def _is_operator(entry: dict[str, Any]) -> bool:
    return ".ops." in str(entry.get("module"))


def _adapted(kind: str, config: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert a layer's configuration for tf_keras; options that tf_keras lacks must have no effect."""
    known = {"name", "trainable"} | inspect.signature(getattr(keras().layers, kind).__init__).parameters.keys()
    adapted = {}
    for key, value in config.items():
        if key.endswith(("_initializer", "_constraint")):
            continue  # not needed, because the weights are loaded
        if kind == "LeakyReLU" and key == "negative_slope":
            adapted["alpha"] = value
        elif key.endswith("activation"):
            if _name_of(value) not in ACTIVATIONS:
                raise ModelError(
                    f"{where}: {key} {_name_of(value)!r} of {config['name']!r} has no equivalent in tf_keras"
                )
            adapted[key] = ACTIVATIONS[_name_of(value)]
        elif isinstance(value, dict) and value.get("class_name") in LAYERS:
            inner = _adapted(value["class_name"], value["config"], where)
            adapted[key] = {"class_name": value["class_name"], "config": inner}
        elif key in known and key != "dtype":
            adapted[key] = value
        elif key not in _UNUSED and value not in _NO_EFFECT:
            raise ModelError(
                f"{where}: layer {config['name']!r} has {key} = {value!r}, which tf_keras does not support"
            )
    return adapted


def _activation(x: Any, name: str, layer: str, where: str) -> Any:
    """Apply an activation of Keras 3 with layers of tf_keras (definitions: keras.activations of Keras 3)."""
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
    raise ModelError(f"{where}: the activation {name!r} of {layer!r} has no equivalent in tf_keras")


def _function(kind: str, config: dict[str, Any], where: str) -> Any:
    if config.get("axis", -1) != -1:
        raise ModelError(f"{where}: the operator {config['name']!r} uses axis {config['axis']}, expected the last axis")
    return lambda x, **_: _activation(x, FUNCTIONS[kind], config["name"], where)


def _arithmetic(kind: str, config: dict[str, Any], where: str) -> Any:
    """Return a layer for arithmetic between two tensors, or a tensor and a constant, e.g. ``x + y`` or ``1 - x``."""
    layers, name = keras().layers, config["name"]

    def apply(x1: Any, x2: Any) -> Any:
        constants = [_is_constant(x) for x in (x1, x2)]
        if not any(constants) and "Divide" not in kind:
            return getattr(layers, kind)(name=name)([x1, x2])
        x, number = (x2, x1) if constants[0] else (x1, x2)
        c = None if all(constants) or not any(constants) else _by_channel(number, x)
        if c is None or ("Divide" in kind and constants[0]):
            raise ModelError(f"{where}: the operator {name!r} ({kind}) has no layer: write it with Keras' layers")
        scale, offset = {
            "Add": (1.0, c),
            "Subtract": (-1.0, c) if constants[0] else (1.0, -c),
            "Multiply": (c, 0.0),
        }.get(kind, (1 / c, 0.0))
        return layers.Rescaling(np.asarray(scale).tolist(), np.asarray(offset).tolist(), name=name)(x)

    return apply


def _is_constant(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_constant(item) for item in value)
    return isinstance(value, int | float | np.ndarray)


def _by_channel(value: Any, x: Any) -> Any:
    """Return a constant as one number, or as one number per channel of ``x``; None if it has another shape."""
    constant = np.asarray(value, np.float64)
    if constant.size == 1:
        return constant.reshape(())
    return constant.reshape(-1) if constant.shape[-1:] == (constant.size,) == (x.shape[-1],) else None


def _indexing(kind: str, config: dict[str, Any], where: str) -> Any:
    """Return a layer for the operations ``x[…]``, ``stack`` and ``flip``."""
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
                f"{where}: the operator {name!r} ({kind}) is not a selection of channels or a crop, and has no layer: "
                "write it with Keras' layers"
            )
        return result

    return apply


def _name_of(activation: Any) -> str:
    """Return the name of a serialized activation; ``linear`` for None."""
    if isinstance(activation, dict):
        return str(activation["config"] if activation["class_name"] == "function" else activation["class_name"])
    return str(activation or "linear")


def _histories(value: Any) -> Iterator[tuple[str, int, int]]:
    """Yield the tensors that a node of the graph reads, as (layer, number of the call, number of the output)."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield tuple(value["config"]["keras_history"])
        else:
            for item in value.values():
                yield from _histories(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _histories(item)


def _resolved(value: Any, tensors: dict[tuple[str, int, int], Any]) -> Any:
    """Return the value of a node's argument: a tensor that its history identifies, or a constant array or number."""
    if isinstance(value, list | tuple):
        return [_resolved(item, tensors) for item in value]
    kind = value.get("class_name") if isinstance(value, dict) else None
    if kind in ("__tensor__", "__numpy__"):
        return np.asarray(value["config"]["value"], np.float64)
    if kind == "__tuple__":
        return _resolved(value["config"].get("value", []), tensors)
    return tensors[next(_histories(value))] if kind == "__keras_tensor__" else value


def _options(node: dict[str, Any], name: str, where: str, tensors: dict[tuple[str, int, int], Any]) -> dict[str, Any]:
    """Return the keyword arguments of a call: ``training=False`` of a frozen layer, or an operator's second operand."""
    options = {key: value for key, value in node["kwargs"].items() if value is not None}
    if unsupported := options.keys() - {"training", "x1", "x2"}:
        raise ModelError(f"{where}: {name!r} is called with {min(unsupported)}, which edgerec does not support")
    return {key: _resolved(value, tensors) for key, value in options.items()}


def _ends(value: Any, tensors: dict[tuple[str, int, int], Any]) -> Any:
    """Return the inputs or outputs of a model: one tensor, or a list of tensors."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value[0], str):
        return tensors[tuple(value)]
    ends = [_ends(item, tensors) for item in value]
    return ends[0] if len(ends) == 1 else ends
