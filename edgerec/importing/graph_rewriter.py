"""Rebuild a Keras model node by node, replacing some of its nodes.

All copies of Keras graphs in edgerec are made here. Keras' ``clone_model`` can replace a layer with another one, but it
cannot remove a layer, replace it with several layers, or flatten a nested model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import ModelError
from edgerec.train.backend import keras, without_autograph
from edgerec.utils.optional import require


@dataclass(frozen=True)
class Node:
    """A layer call in the original model.

    Attributes:
        layer: the layer of the original model.
        inputs: the original model's tensors with which the layer was called.
        args, kwargs: the call's arguments, with tensors of the new model, or :class:`Affine` objects.
        training: the ``training`` argument of the nested model that contains the node.
        alone: whether the node has one input that no other node reads, from a layer that is called only once.
    """

    layer: Any
    inputs: list[Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool | None
    alone: bool

    @property
    def kind(self) -> str:
        """Class name of the layer, or operator name if the node is a TensorFlow operator."""
        return str(getattr(self.layer, "symbol", None) or type(self.layer).__name__)

    @property
    def before(self) -> Any:
        """The layer that computed the node's first input."""
        return self.inputs[0]._keras_history.layer


@dataclass
class Affine:
    """A per-channel transformation, ``scale · tensor + offset``, for which no layer has been created yet.

    Consecutive transformations are merged. A layer is created only if no other transformation follows.

    Attributes:
        tensor: ``(batch, …, channels)``.
        scale, offset: float64 of shape ``()`` or ``(channels,)``.
        name: name of the layer that may be created.
        trainable: whether scale and offset were trained, and stay trainable.
        output: output of the layer, or None until the layer is created.
    """

    tensor: Any
    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    name: str
    trainable: bool = False
    output: Any = None

    @property
    def identity(self) -> bool:
        """True if the scale is 1 and the offset is 0, so that the transformation has no effect."""
        return bool((self.scale == 1).all() and (self.offset == 0).all())

    def then(self, scale: Any, offset: Any, name: str, trainable: bool = False) -> Affine:
        """Combine this transformation with a subsequent one, ``scale · x + offset``."""
        return Affine(self.tensor, scale * self.scale, scale * self.offset + offset, name, self.trainable or trainable)


@dataclass(frozen=True)
class ChannelsFirst:
    """A channels-last tensor that replaces one of the original model's channels-first tensors.

    Attributes:
        tensor: ``(batch, height, width, channels)``.
    """

    tensor: Any


@dataclass
class Rebuild:
    """Rewrite a model node by node, using a callback that either replaces or copies each node.

    Attributes:
        rule: function that returns the replacements for a node's outputs, or None to copy the node.
        changes: names of the replaced layers, each with a description of the replacement.
    """

    rule: Callable[[Rebuild, Node], Any]
    changes: list[tuple[str, str]] = field(default_factory=list)
    _copies: dict[int, Any] = field(default_factory=dict)
    _weights: list[tuple[Any, list[npt.NDArray[Any]]]] = field(default_factory=list)
    _names: Counter[str] = field(default_factory=Counter)

    def run(self, model: Any, inputs: list[Any] | None = None, values: list[Any] | None = None) -> Any:
        """Rewrite a model and return the new functional model.

        Args:
            model: the original model, which is not changed.
            inputs: inputs of the new model. None copies the inputs of ``model``.
            values: tensors, computed from ``inputs``, that replace the inputs of ``model``. None uses ``inputs``.
        """
        if inputs is None:
            inputs = [
                keras().Input(batch_shape=t.shape, dtype=t.dtype, name=self.name(_source_layer(t).name))
                for t in model.inputs
            ]
        outputs = [self.to_tensor(value) for value in self.walk(model, inputs if values is None else values)]
        built = keras().Model(_one_or_all(inputs), _one_or_all(outputs), name=model.name)
        for layer, weights in self._weights:
            layer.set_weights(weights)
            # Normalization layers cache values derived from their weights, so the cache must be updated.
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()
        return built

    def walk(self, model: Any, inputs: list[Any], training: bool | None = None) -> list[Any]:
        """Apply the callback ``rule`` to a model's nodes, and return the model's new outputs.

        Args:
            model: the model or nested model.
            inputs: tensors of the new model that replace the inputs of ``model``.
            training: the ``training`` argument with which a nested model is called.
        """
        nest = require("tensorflow").nest
        values: dict[int, Any] = {id(old): new for old, new in zip(model.inputs, inputs, strict=True)}
        nodes = list(calls(model))
        readers = Counter(id(t) for t in (*model.outputs, *(t for node in nodes for t in node.keras_inputs)))
        uses = Counter(id(node.layer) for node in nodes)

        def replaced(value: Any) -> Any:
            return values.get(id(value), value)

        for node in nodes:
            node_inputs = list(node.keras_inputs)
            args, kwargs = nest.map_structure(replaced, (node.call_args, node.call_kwargs))
            alone = (
                len(node_inputs) == 1
                and readers[id(node_inputs[0])] == 1
                and uses[id(_source_layer(node_inputs[0]))] == 1
            )
            read = Node(node.layer, node_inputs, args, kwargs, training, alone)
            replacement = self.rule(self, read)
            replacement = self.copy(read) if replacement is None else replacement
            values |= {
                id(old): new for old, new in zip(nest.flatten(node.outputs), nest.flatten(replacement), strict=True)
            }
        return [values[id(t)] for t in model.outputs]

    def inline(self, node: Node, training: bool | None) -> Any:
        """Replace a call to a nested model with the nested model's nodes."""
        inputs = require("tensorflow").nest.flatten(node.args)
        replacement = self.walk(node.layer, inputs, training)
        return require("tensorflow").nest.pack_sequence_as(node.layer.output, replacement)

    def copy(self, node: Node, **config: Any) -> Any:
        """Copy a node. Keyword arguments override values in the configuration of the layer."""
        copy = self._copies.get(id(node.layer))
        # A layer with weights that is called several times is copied only once, so that all calls share the weights.
        if copy is None or not node.layer.weights:
            copy = type(node.layer).from_config(node.layer.get_config() | {"name": self.name(node.layer.name)} | config)
            self._copies[id(node.layer)] = copy
            self._weights.append((copy, node.layer.get_weights()))
        return self.call(node, copy)

    def call(self, node: Node, layer: Any) -> Any:
        """Call ``layer`` instead of the node's own layer, with the node's arguments."""
        args, kwargs = require("tensorflow").nest.map_structure(self.to_tensor, (node.args, node.kwargs))
        return layer(*args, **kwargs)

    def name(self, name: str) -> str:
        """Return an unused layer name: ``name``, with a number appended if necessary."""
        self._names[name] += 1
        return name if self._names[name] == 1 else self.name(f"{name}_{self._names[name] - 1}")

    def record_change(self, node: Node, what: str) -> None:
        """Record that a layer was replaced. Only the first description for each layer is kept."""
        if node.layer.name not in (name for name, _ in self.changes):
            self.changes.append((node.layer.name, what))

    def to_tensor(self, value: Any) -> Any:
        """Convert an :class:`Affine` or :class:`ChannelsFirst` to a tensor. Return other values unchanged."""
        if isinstance(value, ChannelsFirst):
            return keras().layers.Permute((3, 1, 2), name=self.name("channels_first"))(value.tensor)
        if not isinstance(value, Affine):
            return value
        if value.output is None:
            value.output = value.tensor if value.identity else self._depthwise(value)
        return value.output

    def _depthwise(self, affine: Affine) -> Any:
        """Apply the transformation with a depthwise convolution, which every target supports."""
        layers, name = keras().layers, self.name(affine.name)
        shape = tuple(affine.tensor.shape[1:])
        channels = shape[-1]
        biased = affine.trainable or bool(affine.offset.any())
        layer = layers.DepthwiseConv2D(1, use_bias=biased, trainable=affine.trainable, name=name)
        if len(shape) == 3:
            replacement = layer(affine.tensor)
        else:
            replacement = layers.Reshape(shape)(layer(layers.Reshape((1,) * (3 - len(shape)) + shape)(affine.tensor)))
        kernel, bias = (np.broadcast_to(v, channels).astype(np.float32) for v in (affine.scale, affine.offset))
        self._weights.append((layer, [kernel.reshape(1, 1, channels, 1), bias][: len(layer.weights)]))
        return replacement


def copied(model: Any) -> Any:
    """Return a functional copy of a model with the same weights but no shared layers."""
    return without_autograph(Rebuild(lambda rebuild, node: None).run)(model)


def with_layers(model: Any, replacement: Callable[[Any], Any]) -> Any:
    """Return a functional model with the same graph as ``model`` but with each layer replaced.

    Args:
        model: a functional or Sequential model.
        replacement: function that maps a layer to its replacement, which may be the same layer or a wrapper around it.
    """
    layers = {id(layer): replacement(layer) for layer in model.layers if type(layer).__name__ != "InputLayer"}
    rebuild = Rebuild(lambda rebuild, node: rebuild.call(node, layers[id(node.layer)]))
    return without_autograph(rebuild.run)(model)


def flatten(rebuild: Rebuild, node: Node) -> Any:
    """Inline a nested model, and remove the argument ``training`` from the call of a layer."""
    own_training = node.kwargs.pop("training", None)
    training = node.training if own_training is None else own_training
    if isinstance(node.layer, keras().Model):
        rebuild.record_change(node, f"nested model → its {len(node.layer.layers)} layers")
        return rebuild.inline(node, training)
    if training is None:
        return None
    if training:
        raise ModelError(
            f"layer {node.layer.name!r} is called with training=True, so its outputs are random: remove this argument"
        )
    if own_training is not None:
        rebuild.record_change(node, "called with training=False → a layer that is always in inference mode")
    if node.kind == "BatchNormalization":
        # A frozen BatchNormalization in Keras 2 uses its moving statistics.
        return rebuild.copy(node, trainable=False)
    return node.args[0] if "Dropout" in node.kind else None


def calls(model: Any) -> Iterator[Any]:
    """Iterate over a model's nodes in topological order."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _source_layer(tensor: Any) -> Any:
    return tensor._keras_history.layer


def _one_or_all(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors


def layers_of(model: Any) -> Iterator[Any]:
    """Iterate over all layers, including those in nested models and wrappers."""
    yield from model._flatten_layers(include_self=False, recursive=True)
