"""Trace which channels of a model have to be removed together.

If a channel is removed, everything that depends on it has to be removed too: the corresponding channel of the other
    operand of an addition, its depthwise filter, its batch-normalization weights, and its slice of every kernel that
    reads it. Dependencies are followed for single channels, so that concatenations and flattening need no special
    treatment. (The idea is DepGraph's, arXiv:2301.12900, which follows dependencies between layers.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Channels = npt.NDArray[np.int64]

# Axes of each weight, biases last: i is an input channel, e an input channel times the depth multiplier, o an output
# channel.
CREATING = {
    "Conv2D": ("hwio", "o"),
    "Conv2DTranspose": ("hwoi", "o"),
    "SeparableConv2D": ("hwim", "hweo", "o"),
    "Dense": ("io", "o"),
}
PASSING = {
    "DepthwiseConv2D": ("hwim", "o"),
    "BatchNormalization": ("o", "o", "o", "o"),
    "PReLU": ("hwo",),
}
# Layers without weights in which each output channel depends on only one input channel.
WEIGHTLESS = {
    *(
        "Activation",
        "ReLU",
        "LeakyReLU",
        "ELU",
        "Softmax",
        "Dropout",
        "SpatialDropout2D",
        "GaussianNoise",
        "GaussianDropout",
    ),
    *("MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D", "GlobalAveragePooling2D"),
    *("ZeroPadding2D", "Cropping2D", "UpSampling2D"),
}
ELEMENTWISE = {"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"}
MERGING = ELEMENTWISE | {"Concatenate"}


@dataclass(frozen=True)
class LayerChannels:
    """The input and output channels of one layer, in order, and the axes of the layer's weights.

    ``positions`` is the number of output positions per image, which is how often each kernel weight is used.
    """

    layer: Any
    inputs: Channels
    outputs: Channels
    axes: tuple[str, ...] = ()
    positions: int = 0

    @property
    def creates(self) -> bool:
        """Whether the layer creates new output channels."""
        return type(self.layer).__name__ in CREATING and bool(self.axes)


@dataclass(frozen=True)
class ChannelGraph:
    """The layers of a model and the channels that they share. Channels that depend on each other have the same number.

    Attributes:
        layers: name -> channels of the layer, in the order of computation.
        fixed: whether a channel must not be removed, indexed by channel number.
        unknown: name -> class of the layers whose channels must not be removed, because their effect on channels is
            unknown.
    """

    layers: dict[str, LayerChannels]
    fixed: npt.NDArray[np.bool_]
    unknown: dict[str, str]


def trace(model: Any) -> ChannelGraph:
    """Trace the channels through a functional or Sequential tf_keras model with channels last.

    The channels of the model's inputs and outputs and of layers of unknown classes are fixed.
    """
    return _Tracer().trace(model)


class _Tracer:
    """Union-find structure over channels, filled while the nodes of a model are visited."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.tensors: dict[str, Channels] = {}
        self.blocked: dict[str, Channels] = {}
        self.layers: dict[str, LayerChannels] = {}

    def trace(self, model: Any) -> ChannelGraph:
        nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
        calls = Counter(id(node.layer) for node in nodes)
        ends = [np.zeros(0, np.int64)]
        for node in nodes:
            layer, inputs = node.layer, [self.tensors[key] for key in node.flat_input_ids]
            shapes = node.output_shapes if isinstance(node.output_shapes, list) else [node.output_shapes]
            entry = self._entry(layer, inputs, shapes[0]) if calls[id(layer)] == len(shapes) == 1 else None
            outputs = [self._new_channels(shape[-1] or 0) for shape in shapes] if entry is None else [entry.outputs]
            self.tensors.update(zip(node.flat_output_ids, outputs, strict=True))
            if node.is_input:
                ends += outputs
            elif entry is None:
                self.blocked[layer.name] = np.concatenate([self.blocked.get(layer.name, ends[0]), *inputs, *outputs])
            else:
                self.layers[layer.name] = entry
        ends += [self.tensors[str(id(tensor))] for tensor in model.outputs]
        return self._channel_graph(np.concatenate(ends), {layer.name: type(layer).__name__ for layer in model.layers})

    def _entry(self, layer: Any, inputs: list[Channels], shape: tuple[int | None, ...]) -> LayerChannels | None:
        """Return the layer's channels, or None if the layer's effect on channels is unknown."""
        kind, config = type(layer).__name__, layer.get_config()
        if not inputs or config.get("data_format") == "channels_first" or config.get("groups", 1) != 1:
            return None
        outputs = (
            self._new_channels(shape[-1] or 0) if kind in CREATING else self._passed_on(kind, config, inputs, shape)
        )
        if outputs is None:
            return None
        if kind == "Softmax" or config.get("activation") == "softmax":
            self.blocked[layer.name] = outputs  # each output depends on all channels
        counted = layer.input_shape if kind == "Conv2DTranspose" else shape
        axes = CREATING.get(kind) or PASSING.get(kind, ())
        first = outputs if kind in MERGING else inputs[0]
        return LayerChannels(layer, first, outputs, axes, prod(n or 1 for n in counted[1:-1]))

    def _passed_on(
        self, kind: str, config: dict[str, Any], inputs: list[Channels], shape: tuple[int | None, ...]
    ) -> Channels | None:
        """Return the output channels of a layer that creates no new channels; None if they are unknown."""
        last = (-1, len(shape) - 1)
        if kind in ELEMENTWISE and len({len(channels) for channels in inputs}) == 1:
            for other in inputs[1:]:
                self._union(inputs[0], other)
            return inputs[0]
        if kind == "Concatenate" and config["axis"] in last:
            return np.concatenate(inputs)
        if len(inputs) > 1:
            return None
        if kind == "DepthwiseConv2D":
            return np.repeat(inputs[0], config["depth_multiplier"])
        if kind == "Flatten":
            return np.tile(inputs[0], shape[-1] // len(inputs[0])) if shape[-1] else None
        if kind == "Reshape":
            return inputs[0] if prod(n or 0 for n in shape[1:]) == shape[-1] == len(inputs[0]) else None
        if kind == "BatchNormalization":
            return inputs[0] if set(np.ravel(config["axis"])) <= set(last) else None
        return inputs[0] if kind in WEIGHTLESS or kind in PASSING else None

    def _new_channels(self, count: int) -> Channels:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count)

    def _find(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def _union(self, first: Channels, second: Channels) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self.parent[self._find(other)] = self._find(one)

    def _channel_graph(self, ends: Channels, kinds: dict[str, str]) -> ChannelGraph:
        roots = np.array([self._find(channel) for channel in range(len(self.parent))], np.int64)
        fixed = np.zeros(len(roots), bool)
        fixed[roots[ends]] = True
        free = np.zeros(len(roots), bool)
        for entry in self.layers.values():
            free[roots[entry.outputs]] |= entry.creates & ~fixed[roots[entry.outputs]]
        unknown = {
            name: kinds[name]
            for name, channels in self.blocked.items()
            if free[roots[channels]].any() or (kinds[name] in CREATING and name not in self.layers)
        }
        for channels in self.blocked.values():
            fixed[roots[channels]] = True
        layers = {
            name: LayerChannels(entry.layer, roots[entry.inputs], roots[entry.outputs], entry.axes, entry.positions)
            for name, entry in self.layers.items()
        }
        return ChannelGraph(layers, fixed, unknown)
