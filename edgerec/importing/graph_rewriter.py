"""Building a Keras model anew, node by node, with something else in the place of some of its nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import ModelError
from edgerec.train.backend import keras
from edgerec.utils.optional import require


@dataclass(frozen=True)
class Node:
    """One call of a layer in the model that is read.

    Attributes:
        layer: the layer, as it stands there.
        inputs: the tensors that it was called on there.
        args, kwargs: the same call with the new model's tensors; some may be :class:`Affine`.
        training: what the nested model that it stands in was called with.
        alone: whether it is the only reader of its only input, whose layer is called this once.
    """

    layer: Any
    inputs: list[Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool | None
    alone: bool

    @property
    def kind(self) -> str:
        """The layer's class name; for an operator written into the graph, the operator's."""
        return str(getattr(self.layer, "symbol", None) or type(self.layer).__name__)

    @property
    def before(self) -> Any:
        """The layer that gave the first input."""
        return self.inputs[0]._keras_history.layer


@dataclass
class Affine:
    """``scale · tensor + offset`` for each channel, not yet a layer, so that the next one may join it.

    Attributes:
        tensor: ``(batch, …, channels)``.
        scale, offset: float64 of shape ``()`` or ``(channels,)``.
        name: of the layer that it may become.
        trainable: whether it was learned, and may be learned on.
    """

    tensor: Any
    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    name: str
    trainable: bool = False
    settled: Any = None

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale == 1).all() and (self.offset == 0).all())

    def then(self, scale: Any, offset: Any, name: str, trainable: bool = False) -> Affine:
        """Return the composition with a second scale and offset, which is applied after this one."""
        return Affine(self.tensor, scale * self.scale, scale * self.offset + offset, name, self.trainable or trainable)


@dataclass(frozen=True)
class ChannelsFirst:
    """A channels-last tensor that replaces a channels-first tensor of the original model.

    Attributes:
        tensor: ``(batch, height, width, channels)``.
    """

    tensor: Any


@dataclass
class Rebuild:
    """Rebuild a model node by node. Layers are copied by config and weights, and not shared with the original model.

    Attributes:
        rule: returns the replacement of a node, or None to copy the node.
        done: pairs of a layer's name and a description of its replacement.
    """

    rule: Callable[[Rebuild, Node], Any]
    done: list[tuple[str, str]] = field(default_factory=list)
    _twins: dict[int, Any] = field(default_factory=dict)
    _weights: list[tuple[Any, list[npt.NDArray[Any]]]] = field(default_factory=list)
    _names: Counter[str] = field(default_factory=Counter)

    def run(self, model: Any, inputs: list[Any] | None = None, values: list[Any] | None = None) -> Any:
        """Return the new functional model.

        Args:
            model: the model to read.
            inputs: inputs of the new model; None copies the inputs of ``model``.
            values: tensors that replace the inputs of ``model``, computed from ``inputs``; None uses ``inputs``.
        """
        if inputs is None:
            inputs = [
                keras().Input(batch_shape=t.shape, dtype=t.dtype, name=self.name(_maker(t).name)) for t in model.inputs
            ]
        outputs = [self.settle(value) for value in self.walk(model, inputs if values is None else values)]
        built = keras().Model(_one_or_all(inputs), _one_or_all(outputs), name=model.name)
        for layer, weights in self._weights:
            layer.set_weights(weights)
            if hasattr(layer, "finalize_state"):  # Normalization works with values taken from its weights
                layer.finalize_state()
        return built

    def walk(self, model: Any, inputs: list[Any], training: bool | None = None) -> list[Any]:
        """Call the model's nodes on other inputs; ``training`` is what the model itself is called with."""
        nest = require("tensorflow").nest
        values: dict[int, Any] = {id(old): new for old, new in zip(model.inputs, inputs, strict=True)}
        nodes = list(calls(model))
        readers = Counter(id(t) for t in (*model.outputs, *(t for node in nodes for t in node.keras_inputs)))
        uses = Counter(id(node.layer) for node in nodes)

        def renewed(value: Any) -> Any:
            return values.get(id(value), value)

        for node in nodes:
            given = list(node.keras_inputs)
            args, kwargs = nest.map_structure(renewed, (node.call_args, node.call_kwargs))
            alone = len(given) == 1 and readers[id(given[0])] == 1 and uses[id(_maker(given[0]))] == 1
            read = Node(node.layer, given, args, kwargs, training, alone)
            made = self.rule(self, read)
            made = self.copy(read) if made is None else made
            values |= {id(old): new for old, new in zip(nest.flatten(node.outputs), nest.flatten(made), strict=True)}
        return [values[id(t)] for t in model.outputs]

    def inline(self, node: Node, training: bool | None) -> Any:
        """The nodes of a nested model in the place of its call."""
        inputs = require("tensorflow").nest.flatten(node.args)
        made = self.walk(node.layer, inputs, training)
        return require("tensorflow").nest.pack_sequence_as(node.layer.output, made)

    def copy(self, node: Node, **config: Any) -> Any:
        """The node as it is, or with another ``config`` of its layer."""
        twin = self._twins.get(id(node.layer))
        # A layer that is called several times stays one where it has weights, which they share.
        if twin is None or not node.layer.weights:
            twin = type(node.layer).from_config(node.layer.get_config() | {"name": self.name(node.layer.name)} | config)
            self._twins[id(node.layer)] = twin
            self._weights.append((twin, node.layer.get_weights()))
        args, kwargs = require("tensorflow").nest.map_structure(self.settle, (node.args, node.kwargs))
        return twin(*args, **kwargs)

    def name(self, wanted: str) -> str:
        """That name, or one like it that no layer has yet: two nested models may use the same."""
        self._names[wanted] += 1
        return wanted if self._names[wanted] == 1 else self.name(f"{wanted}_{self._names[wanted] - 1}")

    def tell(self, node: Node, what: str) -> None:
        """Remember what became of a layer; the first word on it counts."""
        if node.layer.name not in (name for name, _ in self.done):
            self.done.append((node.layer.name, what))

    def settle(self, value: Any) -> Any:
        """Return the tensor of an :class:`Affine` or :class:`ChannelsFirst`; return any other value unchanged."""
        if isinstance(value, ChannelsFirst):
            return keras().layers.Permute((3, 1, 2), name=self.name("channels_first"))(value.tensor)
        if not isinstance(value, Affine):
            return value
        if value.settled is None:
            value.settled = value.tensor if value.identity else self._depthwise(value)
        return value.settled

    def _depthwise(self, affine: Affine) -> Any:
        """The affine as a layer that every target runs: one operator, one rounding."""
        layers, name = keras().layers, self.name(affine.name)
        shape = tuple(affine.tensor.shape[1:])
        channels = shape[-1]
        biased = affine.trainable or bool(affine.offset.any())
        layer = layers.DepthwiseConv2D(1, use_bias=biased, trainable=affine.trainable, name=name)
        if len(shape) == 3:
            made = layer(affine.tensor)
        else:
            made = layers.Reshape(shape)(layer(layers.Reshape((1,) * (3 - len(shape)) + shape)(affine.tensor)))
        kernel, bias = (np.broadcast_to(v, channels).astype(np.float32) for v in (affine.scale, affine.offset))
        self._weights.append((layer, [kernel.reshape(1, 1, channels, 1), bias][: len(layer.weights)]))
        return made


def flatten(rebuild: Rebuild, node: Node) -> Any:
    """The rule by which a model inside a model becomes its layers; ``training=False``, said at a call, their own."""
    said = node.kwargs.pop("training", None)
    training = node.training if said is None else said
    if isinstance(node.layer, keras().Model):
        rebuild.tell(node, f"a model inside the model → its {len(node.layer.layers)} layers")
        return rebuild.inline(node, training)
    if training is None:
        return None
    if training:
        raise ModelError(f"layer {node.layer.name!r} is called with training=True: it answers differently each time")
    if said is not None:
        rebuild.tell(node, "called with training=False → a layer that is so of itself")
    if node.kind == "BatchNormalization":
        return rebuild.copy(node, trainable=False)  # says the same in Keras 2: statistics as they are
    return node.args[0] if "Dropout" in node.kind else None


def calls(model: Any) -> Iterator[Any]:
    """The model's calls, each after those that it needs."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _maker(tensor: Any) -> Any:
    return tensor._keras_history.layer


def _one_or_all(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors
