"""Find groups of channels that must be removed together from a model.

Removing a channel requires removing everything that depends on it: the corresponding channel of the other
operand of an addition, its depthwise filter, its batch-normalization weights, and its slice of every kernel that reads
it. Dependencies are followed for single channels, so that concatenations and flattening need no special treatment.
(DepGraph, arXiv:2301.12900, follows dependencies between layers.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.utils.optional import require

Channels = npt.NDArray[np.int64]

# Each string describes one array in ``layer.get_weights()``, and each letter describes one axis of the array.
# The letter "i" means input channels, "o" means output channels, and "e" means input channels times depth multiplier.
# Other letters, e.g. "h" and "w", mean axes that are not channels.
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
# These layers have no weights, and each of their output channels depends on a single input channel.
WEIGHTLESS = {
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax"),
    *("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"),
    *("MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D", "GlobalAveragePooling2D"),
    *("ZeroPadding2D", "Cropping2D", "UpSampling2D"),
}
ELEMENTWISE = {"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"}
MERGING = ELEMENTWISE | {"Concatenate"}


@dataclass(frozen=True)
class LayerChannels:
    """Channel numbers of a layer's input and output, and the axes of its weights.

    Attributes:
        layer: the layer.
        inputs, outputs: channel numbers in the order of the layer's input and output.
        axes: axis letters of each weight; see :data:`CREATING`.
        positions: number of output positions per image, i.e. how often each kernel weight is used.
    """

    layer: Any
    inputs: Channels
    outputs: Channels
    axes: tuple[str, ...] = ()
    positions: int = 0

    @property
    def creates(self) -> bool:
        """Whether the layer creates new output channels, e.g. a convolution."""
        return type(self.layer).__name__ in CREATING and bool(self.axes)

    def along(self, letter: str, size: int = 0) -> Channels:
        """Return the channel numbers along an axis of the layer's weights.

        Args:
            letter: letter of the axis; see :data:`CREATING`.
            size: length of the axis; only needed for the letter ``e``.
        """
        if letter == "e":
            return np.repeat(self.inputs, size // len(self.inputs))
        return self.outputs if letter == "o" else self.inputs


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of all layers in a model. Channels that must be removed together have the same number.

    Attributes:
        layers: maps layer names to their channels, in topological order.
        fixed: whether a channel must not be removed, indexed by channel number.
        unknown: maps layer names to layer classes, for layers whose channels must not be removed because it is unknown
            how the class processes channels.
    """

    layers: dict[str, LayerChannels]
    fixed: npt.NDArray[np.bool_]
    unknown: dict[str, str]


def other_axes(axes: str, letter: str) -> tuple[int, ...]:
    """Return the indices of all axes whose letter differs from ``letter``."""
    return tuple(axis for axis, name in enumerate(axes) if name != letter)


def trace(model: Any) -> ChannelGraph:
    """Trace the channels through all layers of a functional or Sequential tf_keras model.

    The data format must be channels-last. The input and output channels, and those of unknown layers, are fixed.
    """
    return _Tracer().trace(model)


class _Tracer:
    def __init__(self) -> None:
        self.count = 0
        self.links: list[tuple[Channels, Channels]] = []
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
        """Return the layer's channels, or None if the layer is not supported."""
        kind, config = type(layer).__name__, layer.get_config()
        if not inputs or config.get("data_format") == "channels_first" or config.get("groups", 1) != 1:
            return None
        outputs = (
            self._new_channels(shape[-1] or 0) if kind in CREATING else self._passed_on(kind, config, inputs, shape)
        )
        if outputs is None:
            return None
        if kind == "Softmax" or config.get("activation") == "softmax":
            self.blocked[layer.name] = outputs  # softmax depends on all channels, so no channel can be removed
        counted = layer.input_shape if kind == "Conv2DTranspose" else shape
        axes = CREATING.get(kind) or PASSING.get(kind, ())
        first = outputs if kind in MERGING else inputs[0]
        return LayerChannels(layer, first, outputs, axes, prod(n or 1 for n in counted[1:-1]))

    def _passed_on(
        self, kind: str, config: dict[str, Any], inputs: list[Channels], shape: tuple[int | None, ...]
    ) -> Channels | None:
        """Return the output channels of a layer that creates no new channels, or None if they are unknown."""
        last = (-1, len(shape) - 1)
        if kind in ELEMENTWISE and len({len(channels) for channels in inputs}) == 1:
            self.links += [(inputs[0], other) for other in inputs[1:]]
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
        self.count += count
        return np.arange(self.count - count, self.count)

    def _group_numbers(self) -> Channels:
        """Return the group number of each channel. Linked channels share a group number."""
        first, second = (np.concatenate([np.zeros(0, np.int64), *side]) for side in zip(*self.links, strict=True))
        links = require("scipy.sparse").coo_array((np.ones(len(first)), (first, second)), shape=2 * (self.count,))
        numbers: Channels = require("scipy.sparse.csgraph").connected_components(links, directed=False)[1]
        return numbers

    def _channel_graph(self, ends: Channels, kinds: dict[str, str]) -> ChannelGraph:
        numbers = self._group_numbers() if self.links else np.arange(self.count)
        fixed = np.zeros(self.count, bool)
        fixed[numbers[ends]] = True
        free = np.zeros(self.count, bool)
        for entry in self.layers.values():
            free[numbers[entry.outputs]] |= entry.creates & ~fixed[numbers[entry.outputs]]
        unknown = {
            name: kinds[name]
            for name, channels in self.blocked.items()
            if free[numbers[channels]].any() or (kinds[name] in CREATING and name not in self.layers)
        }
        for channels in self.blocked.values():
            fixed[numbers[channels]] = True
        layers = {
            name: LayerChannels(entry.layer, numbers[entry.inputs], numbers[entry.outputs], entry.axes, entry.positions)
            for name, entry in self.layers.items()
        }
        return ChannelGraph(layers, fixed, unknown)
