"""Which channels of a model belong together: those that one layer makes, others pass on, join and use.

A channel that goes takes with it whatever is tied to it: the other summand's channel of an addition, the depthwise
filter that it runs through, its normalisation, its column of every kernel that uses it. Ties are followed channel by
channel, so that a concatenation or a flattening is nothing special. (The idea is DepGraph's, arXiv:2301.12900, which
ties layers.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Channels = npt.NDArray[np.int64]

# Each weight's axes, biases last: i a channel that comes in, e the same by the depth multiplier, o one that goes out.
MAKERS = {
    "Conv2D": ("hwio", "o"),
    "Conv2DTranspose": ("hwoi", "o"),
    "SeparableConv2D": ("hwim", "hweo", "o"),
    "Dense": ("io", "o"),
}
PASSERS = {
    "DepthwiseConv2D": ("hwim", "o"),
    "BatchNormalization": ("o", "o", "o", "o"),
    "PReLU": ("hwo",),
}
# Layers without weights whose every output channel comes from the same input channel alone.
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
TIES = {"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"}
JOINTS = TIES | {"Concatenate"}


@dataclass(frozen=True)
class Wire:
    """One layer: the channels that come in and go out, in their order, and the axes of its weights.

    ``positions`` is how often a step over a picture uses each number of its kernels.
    """

    layer: Any
    used: Channels
    made: Channels
    axes: tuple[str, ...] = ()
    positions: int = 0

    @property
    def makes(self) -> bool:
        """Whether its output channels are new ones."""
        return type(self.layer).__name__ in MAKERS and bool(self.axes)


@dataclass(frozen=True)
class Wiring:
    """A model's layers and ties. Channels that are tied carry the same number.

    Attributes:
        wires: each layer by its name, in the order of computation.
        fixed: whether a channel must stay, by its number.
        unknown: layers that hold channels in their place because nothing is known of what they do: name -> kind.
    """

    wires: dict[str, Wire]
    fixed: npt.NDArray[np.bool_]
    unknown: dict[str, str]


def trace(model: Any) -> Wiring:
    """Follow the channels through a tf_keras model, functional or Sequential, channels last.

    The model's inputs and outputs stay as they are, and so does all that enters or leaves a layer of an unknown kind.
    """
    return _Tracer().trace(model)


class _Tracer:
    """Union-find over channels, filled while the model's nodes are walked."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.tensors: dict[str, Channels] = {}
        self.held: dict[str, Channels] = {}
        self.wires: dict[str, Wire] = {}

    def trace(self, model: Any) -> Wiring:
        nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
        calls = Counter(id(node.layer) for node in nodes)
        ends = [np.zeros(0, np.int64)]
        for node in nodes:
            layer, used = node.layer, [self.tensors[key] for key in node.flat_input_ids]
            shapes = node.output_shapes if isinstance(node.output_shapes, list) else [node.output_shapes]
            wire = self._wire(layer, used, shapes[0]) if calls[id(layer)] == len(shapes) == 1 else None
            made = [self._fresh(shape[-1] or 0) for shape in shapes] if wire is None else [wire.made]
            self.tensors.update(zip(node.flat_output_ids, made, strict=True))
            if node.is_input:
                ends += made
            elif wire is None:
                self.held[layer.name] = np.concatenate([self.held.get(layer.name, ends[0]), *used, *made])
            else:
                self.wires[layer.name] = wire
        ends += [self.tensors[str(id(tensor))] for tensor in model.outputs]
        return self._settled(np.concatenate(ends), {layer.name: type(layer).__name__ for layer in model.layers})

    def _wire(self, layer: Any, used: list[Channels], shape: tuple[int | None, ...]) -> Wire | None:
        """The layer's wire, or None when it is not known what it does to its channels."""
        kind, config = type(layer).__name__, layer.get_config()
        if not used or config.get("data_format") == "channels_first" or config.get("groups", 1) != 1:
            return None
        made = self._fresh(shape[-1] or 0) if kind in MAKERS else self._passed(kind, config, used, shape)
        if made is None:
            return None
        if kind == "Softmax" or config.get("activation") == "softmax":
            self.held[layer.name] = made  # each of its outputs comes from all channels
        counted = layer.input_shape if kind == "Conv2DTranspose" else shape
        axes = MAKERS.get(kind) or PASSERS.get(kind, ())
        return Wire(layer, made if kind in JOINTS else used[0], made, axes, prod(n or 1 for n in counted[1:-1]))

    def _passed(
        self, kind: str, config: dict[str, Any], used: list[Channels], shape: tuple[int | None, ...]
    ) -> Channels | None:
        """What becomes of channels where no new ones are made."""
        last = (-1, len(shape) - 1)
        if kind in TIES and len({len(channels) for channels in used}) == 1:
            for other in used[1:]:
                self._tie(used[0], other)
            return used[0]
        if kind == "Concatenate" and config["axis"] in last:
            return np.concatenate(used)
        if len(used) > 1:
            return None
        if kind == "DepthwiseConv2D":
            return np.repeat(used[0], config["depth_multiplier"])
        if kind == "Flatten":
            return np.tile(used[0], shape[-1] // len(used[0])) if shape[-1] else None
        if kind == "Reshape":
            return used[0] if prod(n or 0 for n in shape[1:]) == shape[-1] == len(used[0]) else None
        if kind == "BatchNormalization":
            return used[0] if set(np.ravel(config["axis"])) <= set(last) else None
        return used[0] if kind in WEIGHTLESS or kind in PASSERS else None

    def _fresh(self, count: int) -> Channels:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count)

    def _find(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def _tie(self, some: Channels, others: Channels) -> None:
        for one, other in zip(some.tolist(), others.tolist(), strict=True):
            self.parent[self._find(other)] = self._find(one)

    def _settled(self, ends: Channels, kinds: dict[str, str]) -> Wiring:
        roots = np.array([self._find(channel) for channel in range(len(self.parent))], np.int64)
        fixed = np.zeros(len(roots), bool)
        fixed[roots[ends]] = True
        free = np.zeros(len(roots), bool)
        for wire in self.wires.values():
            free[roots[wire.made]] |= wire.makes & ~fixed[roots[wire.made]]
        unknown = {
            name: kinds[name]
            for name, held in self.held.items()
            if free[roots[held]].any() or (kinds[name] in MAKERS and name not in self.wires)
        }
        for held in self.held.values():
            fixed[roots[held]] = True
        wires = {
            name: Wire(wire.layer, roots[wire.used], roots[wire.made], wire.axes, wire.positions)
            for name, wire in self.wires.items()
        }
        return Wiring(wires, fixed, unknown)
