"""Replace layers that quantization-aware training does not support with equivalent ones.

The rewritten layers are exact except for float rounding. Layers that scale and shift channels (``Rescaling``,
``Normalization``, ``x * 2 + 1``, a batch normalization that cannot be fused into a convolution) become :class:`Affine`
objects. Neighboring ones are merged, and the result becomes a 1×1 depthwise convolution, which runs on every target
including the Edge TPU. Hard-swish, ``x · relu6(x + 3) / 6``, becomes two of them around a ReLU6. In int8, this is
faster than the operator HARD_SWISH (docs/results/architectures.md), which the Edge TPU leaves to the CPU.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgerec.importing.graph_rewriter import Affine, Node, Rebuild
from edgerec.importing.indexing import Channel, indexed, selected
from edgerec.train.backend import keras

# Activations that tfmot and TFLite support inside a convolution or dense layer.
INSIDE = ("linear", "relu", "softmax", "sigmoid", "tanh")
# Activations allowed as separate layers, because tfmot and the int8 kernels support them.
ALONE = (*INSIDE, "swish", "gelu")
# A rewrite function returns a node's replacement (a tensor or an Affine), or None to copy the node.
Rewrite = Callable[[Rebuild, Node, Any], Any]


def lower(rebuild: Rebuild, node: Node) -> Any:
    """Replace a node that quantization-aware training does not support, or return None to copy the node."""
    if node.kind in _LAYERS:
        return _LAYERS[node.kind](rebuild, node, node.args[0])
    if hasattr(node.layer, "symbol"):
        return _operator(rebuild, node)
    name = activation_name(node.layer)
    if name in INSIDE or name not in _ACTIVATIONS or hasattr(node.layer, "cell"):
        return None
    rebuild.record_change(node, f"activation {name} → separate layers")
    return _ACTIVATIONS[name](rebuild, node, rebuild.copy(node, activation="linear"))


def activation_name(layer: Any) -> str:
    """Return the name of a layer's activation, or ``linear`` if there is none."""
    activation = getattr(layer, "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", type(activation).__name__)


def is_folded(node: Node) -> bool:
    """Return whether tfmot and the converter fold a batch normalization into the preceding convolution.

    tfmot also accepts batch normalization after a dense layer, but the converter then leaves the dense layer in float.
    """
    layers, before = keras().layers, node.before
    return (
        node.alone
        and type(before) in (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
        and activation_name(before) == "linear"
    )


# Layers


def _rescaling(rebuild: Rebuild, node: Node, x: Any) -> Any:
    return _affine(rebuild, node, x, node.layer.scale, node.layer.offset)


def _normalization(rebuild: Rebuild, node: Node, x: Any) -> Any:
    layer = node.layer
    mean = np.asarray(layer.mean, np.float64)
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance, np.float64)), keras().backend.epsilon())
    if layer.invert:
        return _affine(rebuild, node, x, deviation, mean)
    return _affine(rebuild, node, x, 1 / deviation, -mean / deviation)


def _batch_normalization(rebuild: Rebuild, node: Node, x: Any) -> Any:
    """Convert a batch normalization that cannot be folded into a convolution to a scale and an offset.

    tfmot does not support batch normalization without a convolution. With a quantize config, training
    would use batch statistics but inference would not, and the layer would become two operators, MUL and ADD. A
    convolution is one operator with one rounding, and its scale and offset stay trainable.
    """
    layer = node.layer
    if is_folded(node) or list(layer.axis) != [len(node.inputs[0].shape) - 1]:
        return None
    mean, variance = (np.asarray(v, np.float64) for v in (layer.moving_mean, layer.moving_variance))
    scale = (1.0 if layer.gamma is None else np.asarray(layer.gamma, np.float64)) / np.sqrt(variance + layer.epsilon)
    offset = (0.0 if layer.beta is None else np.asarray(layer.beta, np.float64)) - mean * scale
    return _affine(rebuild, node, x, scale, offset, trainable=layer.trainable)


def _activation_layer(rebuild: Rebuild, node: Node, x: Any) -> Any:
    name = activation_name(node.layer)
    if name in ALONE or name not in _ACTIVATIONS:
        return None
    rebuild.record_change(node, f"{name} → layers with int8 kernels")
    return _ACTIVATIONS[name](rebuild, node, x)


def _relu(rebuild: Rebuild, node: Node, x: Any) -> Any:
    layer = node.layer
    if layer.max_value in (None, 6) or layer.negative_slope or layer.threshold:
        return None
    highest = float(layer.max_value)
    rebuild.record_change(node, f"ReLU with maximum {highest:g} → ReLU6 between scalings")
    return _clip(rebuild, node, x, 0.0, highest)


def _average(rebuild: Rebuild, node: Node, x: Any) -> Any:
    rebuild.record_change(node, "Average → Add and a scaling")
    added = _make(rebuild, node, keras().layers.Add, x)
    return Affine(added, np.asarray(1 / len(x)), np.asarray(0.0), node.layer.name)


def _average_pooling(rebuild: Rebuild, node: Node, x: Any) -> Any:
    """Convert average pooling without padding to a depthwise convolution with equal weights.

    A subsequent Concatenate may require another output scale, but AVERAGE_POOL_2D must have the same output scale
    as input scale ("violate the same scale constraint").
    """
    layer, size = node.layer, node.inputs[0].shape[1:3]
    without_padding = layer.pool_size == layer.strides and not any(n is None or n % layer.strides[0] for n in size)
    if (
        len(set(layer.strides)) > 1
        or layer.data_format != "channels_last"
        or not (layer.padding == "valid" or without_padding)
    ):
        return None
    rebuild.record_change(node, "AveragePooling2D → depthwise convolution")
    equal = keras().initializers.Constant(1 / math.prod(layer.pool_size))
    options = {"strides": layer.strides, "use_bias": False, "trainable": False, "depthwise_initializer": equal}
    return _make(rebuild, node, keras().layers.DepthwiseConv2D, x, layer.pool_size, **options)


# Operators in the graph


def _operator(rebuild: Rebuild, node: Node) -> Any:
    symbol = node.kind.removeprefix("compat.v1.").removeprefix("__operators__.").removeprefix("math.")
    if symbol not in _OPERATORS:
        return None
    bound = inspect.signature(node.layer.function).bind(*node.args, **node.kwargs)
    replacement = _OPERATORS[symbol](
        rebuild, node, {k: v for k, v in bound.arguments.items() if k != "name" and v is not None}
    )
    if replacement is not None and not isinstance(replacement, Affine):
        rebuild.record_change(node, f"operator {node.kind} → layer")
    return replacement


def _binary(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    """Replace ``+ − × ÷`` with a layer for two tensors, or with an :class:`Affine` for a tensor and a constant."""
    sign = node.kind.rpartition(".")[2]
    x, y = arguments.values()
    if _is_tensor(x) and _is_tensor(y):
        merge = {"add": "Add", "subtract": "Subtract", "multiply": "Multiply"}.get(sign)
        return _make(rebuild, node, getattr(keras().layers, merge), [x, y]) if merge else None
    if not _is_tensor(x):
        constant = np.asarray(x, np.float64)
        by_sign = {"add": (1.0, constant), "subtract": (-1.0, constant), "multiply": (constant, 0.0)}
        return _affine(rebuild, node, y, *by_sign[sign]) if sign in by_sign else None
    constant = np.asarray(y, np.float64)
    by_sign = {"add": (1.0, constant), "subtract": (1.0, -constant), "multiply": (constant, 0.0)}
    return _affine(rebuild, node, x, *by_sign.get(sign, (1 / constant, 0.0)))


def _negative(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    return _affine(rebuild, node, arguments["x"], -1.0, 0.0)


def _getitem(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    result = indexed(
        rebuild.to_tensor(arguments["tensor"]), arguments["slice_spec"], lambda: rebuild.name(node.layer.name)
    )
    return None if isinstance(result, Channel) else result


def _reverse(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    x = rebuild.to_tensor(arguments["tensor"])
    if [int(axis) % len(x.shape) for axis in np.ravel(arguments["axis"])] != [len(x.shape) - 1]:
        return None
    return selected(x, list(range(x.shape[-1]))[::-1], lambda: rebuild.name(node.layer.name))


def _bias_add(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    if str(arguments.get("data_format") or "NHWC").startswith("NC") or _is_tensor(arguments["bias"]):
        return None
    return _affine(rebuild, node, arguments["value"], 1.0, np.asarray(arguments["bias"], np.float64))


def _clip_by_value(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    rebuild.record_change(node, "clip_by_value → ReLU6 between scalings")
    return _clip(rebuild, node, arguments["t"], float(arguments["clip_value_min"]), float(arguments["clip_value_max"]))


def _maximum(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    x, y = arguments.values()
    return _make(rebuild, node, keras().layers.ReLU, x) if not _is_tensor(y) and np.all(np.asarray(y) == 0) else None


def _mean(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    x = arguments["input_tensor"]
    if len(_shape(x)) != 4 or sorted(np.atleast_1d(arguments.get("axis", ()))) != [1, 2]:
        return None
    return _make(
        rebuild, node, keras().layers.GlobalAveragePooling2D, x, keepdims=bool(arguments.get("keepdims", False))
    )


def _reshape(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    x, shape = arguments["tensor"], [int(n) for n in np.asarray(arguments["shape"]).ravel()]
    if shape[0] != -1 or math.prod(shape[1:]) != math.prod(n or 0 for n in _shape(x)[1:]):
        return None
    return _make(rebuild, node, keras().layers.Reshape, x, shape[1:])


def _pad(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    amounts = np.asarray(arguments["paddings"])
    zeros = arguments.get("mode", "CONSTANT").upper() == "CONSTANT" and not arguments.get("constant_values", 0)
    if amounts.shape != (4, 2) or amounts[[0, 3]].any() or not zeros:
        return None
    return _make(rebuild, node, keras().layers.ZeroPadding2D, arguments["tensor"], amounts[1:3].tolist())


def _concat(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
    if not all(map(_is_tensor, arguments["values"])):
        return None
    return _make(rebuild, node, keras().layers.Concatenate, list(arguments["values"]), axis=int(arguments["axis"]))


def _as_activation(name: str) -> Callable[[Rebuild, Node, dict[str, Any]], Any]:
    def rewrite(rebuild: Rebuild, node: Node, arguments: dict[str, Any]) -> Any:
        x, *options = arguments.values()
        return (
            None if any(option not in (False, 1.0, -1) for option in options) else _ACTIVATIONS[name](rebuild, node, x)
        )

    return rewrite


# Building blocks


def _affine(rebuild: Rebuild, node: Node, x: Any, scale: Any, offset: Any, trainable: bool = False) -> Any:
    """Return ``scale · x + offset`` if scale and offset are scalars or have one value per channel, otherwise None."""
    *others, channels = _shape(x)
    scale, offset = (np.asarray(v, np.float64) for v in (scale, offset))
    by_channel = all(v.size == 1 or v.shape[-1:] == (channels,) == (v.size,) for v in (scale, offset))
    if not by_channel or channels is None or len(others) > 3:
        return None
    scale, offset = (v.reshape(() if v.size == 1 else (channels,)) for v in (scale, offset))
    affine = Affine(x, scale, offset, node.layer.name, trainable)
    rebuild.record_change(
        node,
        f"{node.kind} → " + ("removed, because it changes nothing" if affine.identity else "1×1 depthwise convolution"),
    )
    return x.then(scale, offset, node.layer.name, trainable) if isinstance(x, Affine) else affine


def _clip(rebuild: Rebuild, node: Node, x: Any, low: float, high: float) -> Any:
    """Return ``min(max(x, low), high)``, computed as relu6((x − low) · 6 / (high − low)) · (high − low) / 6 + low."""
    span = high - low
    shifted = _affine(rebuild, node, x, 6 / span, -low * 6 / span)
    return _affine(rebuild, node, _make(rebuild, node, keras().layers.ReLU, shifted, 6.0), span / 6, low)


def _hard_sigmoid(rebuild: Rebuild, node: Node, x: Any) -> Any:
    """Apply Keras 2's hard sigmoid, ``clip(0.2 x + 0.5, 0, 1)``."""
    return _clip(rebuild, node, _affine(rebuild, node, x, 0.2, 0.5), 0.0, 1.0)


def _make(rebuild: Rebuild, node: Node, kind: Any, x: Any, *args: Any, **options: Any) -> Any:
    x = [rebuild.to_tensor(value) for value in x] if isinstance(x, list) else rebuild.to_tensor(x)
    return kind(*args, name=rebuild.name(node.layer.name), **options)(x)


def _layer_rewrite(kind: str, *args: Any) -> Rewrite:
    return lambda rebuild, node, x: _make(rebuild, node, getattr(keras().layers, kind), x, *args)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Affine) or hasattr(value, "_keras_history")


def _shape(x: Any) -> tuple[int | None, ...]:
    return tuple((x.tensor if isinstance(x, Affine) else x).shape)


_LAYERS: dict[str, Rewrite] = {
    "Activation": _activation_layer,
    "Average": _average,
    "AveragePooling2D": _average_pooling,
    "BatchNormalization": _batch_normalization,
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescaling,
}
_ACTIVATIONS: dict[str, Rewrite] = {
    "gelu": _layer_rewrite("Activation", "gelu"),
    "hard_sigmoid": _hard_sigmoid,
    "leaky_relu": _layer_rewrite("LeakyReLU", 0.2),
    "relu": _layer_rewrite("ReLU"),
    "relu6": _layer_rewrite("ReLU", 6.0),
    "sigmoid": _layer_rewrite("Activation", "sigmoid"),
    "softmax": _layer_rewrite("Activation", "softmax"),
    "swish": _layer_rewrite("Activation", "swish"),
    "tanh": _layer_rewrite("Activation", "tanh"),
}
_OPERATORS: dict[str, Callable[[Rebuild, Node, dict[str, Any]], Any]] = {
    **dict.fromkeys(("add", "subtract", "multiply", "truediv", "divide"), _binary),
    "clip_by_value": _clip_by_value,
    "concat": _concat,
    "getitem": _getitem,
    "maximum": _maximum,
    "negative": _negative,
    "nn.bias_add": _bias_add,
    "nn.relu": _as_activation("relu"),
    "nn.relu6": _as_activation("relu6"),
    "nn.silu": _as_activation("swish"),
    "nn.gelu": _as_activation("gelu"),
    "nn.leaky_relu": _as_activation("leaky_relu"),
    "nn.softmax": _as_activation("softmax"),
    "pad": _pad,
    "reduce_mean": _mean,
    "reshape": _reshape,
    "reverse": _reverse,
    "sigmoid": _as_activation("sigmoid"),
    "tanh": _as_activation("tanh"),
}
