"""Choose which channels to remove so that a model's estimated inference time reaches a target."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.channel_graph import MERGING, ChannelGraph, Channels, trace
from edgerec.compress.channel_importance import Numbers

log = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]

# Each layer keeps at least this fraction of its channels.
MIN_FRACTION = 0.125
# Costs are relative to one multiply-accumulate operation (MAC) of a standard convolution.
# The costs were measured with XNNPACK's int8 kernels on x86-64, using one thread.
# Actual speedups are smaller than estimated, because the overhead of each layer is ignored.
DEPTHWISE_MAC_COST = 4.0
OUTPUT_WRITE_COST = 20.0
# Int8 kernels process blocks of 8 or 16 channels, so 12 channels take as long as 16.
# Small layers use blocks of 8 channels, because blocks of 16 would be too coarse.
SMALL, MULTIPLES = 32, (8, 16)


def macs(model: Any) -> int:
    """Return the number of multiply-accumulate operations per image in the convolutions and dense layers."""
    return int(_Costs.of(trace(model), depthwise=1, written=0).total)


def cost(model: Any) -> float:
    """Estimate the inference time of the int8 model, in multiply-accumulates of a standard convolution."""
    return _Costs.of(trace(model)).total


def removable_groups(graph: ChannelGraph) -> list[Channels]:
    """Return the removable channels, grouped by the layers that create them."""
    creators: dict[int, list[str]] = defaultdict(list)
    for name, entry in graph.layers.items():
        if entry.creates:
            for channel in set(entry.outputs[~graph.fixed[entry.outputs]].tolist()):
                creators[channel].append(name)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for channel, names in creators.items():
        groups[tuple(names)].append(channel)
    return [np.array(sorted(group)) for group in groups.values()]


def block_size(group: Channels, multiple: int) -> int:
    """Return the number of channels to remove at once: ``multiple`` if it is not 0, otherwise 8 or 16."""
    return multiple or MULTIPLES[len(group) >= SMALL]


def choose_channels(graph: ChannelGraph, groups: list[Channels], scores: Numbers, target: float, multiple: int) -> Mask:
    """Return a mask of the channels to keep, indexed by channel number.

    The block with the lowest importance per saved cost is removed first.

    Args:
        graph: channels of the model.
        groups: the removable channels, from :func:`removable_groups`.
        scores: importance of each channel.
        target: maximum :func:`cost` of the smaller model. If this is not achievable, all blocks are removed.
        multiple: number of channels per block, as for :func:`block_size`.
    """
    original = costs = _Costs.of(graph)
    counts = np.zeros((2, len(costs.inputs), len(scores)), np.float32)  # read and write counts
    for number, entry in enumerate(graph.layers.values()):
        np.add.at(counts[0, number], entry.inputs, 1)
        np.add.at(counts[1, number], entry.outputs, 1)
    blocks = [_blocks(group[np.argsort(scores[group], kind="stable")], block_size(group, multiple)) for group in groups]
    block_counts = [[counts[..., block].sum(-1) for block in group_blocks] for group_blocks in blocks]
    removed_blocks = [0] * len(groups)

    def loss(index: int, number: int, saved: float) -> float:
        return float(scores[blocks[index][number]].sum()) / saved

    while costs.total > target:
        smaller = {i: costs.without(*block_counts[i][n]) for i, n in enumerate(removed_blocks) if n < len(blocks[i])}
        if not smaller:
            remaining = 100 * costs.total / original.total
            log.warning("no more channels can be removed: about %.0f%% of the inference time remains", remaining)
            break
        chosen = min(smaller, key=lambda i: loss(i, removed_blocks[i], costs.total - smaller[i].total))
        removed_blocks[chosen], costs = removed_blocks[chosen] + 1, smaller[chosen]
    # Restore as many blocks as possible without exceeding the target.
    while True:
        larger = {i: costs.without(*-block_counts[i][n - 1]) for i, n in enumerate(removed_blocks) if n}
        larger = {i: restored for i, restored in larger.items() if restored.total <= target}
        if not larger:
            break
        chosen = max(larger, key=lambda i: loss(i, removed_blocks[i] - 1, 1.0))
        removed_blocks[chosen], costs = removed_blocks[chosen] - 1, larger[chosen]
    keep = np.ones(len(scores), bool)
    for group_blocks, count in zip(blocks, removed_blocks, strict=True):
        keep[[channel for block in group_blocks[:count] for channel in block]] = False
    return keep


def _blocks(order: Channels, size: int) -> list[Channels]:
    """Split channels, which are sorted by importance, into blocks that are removed one by one.

    The number of remaining channels is always a multiple of the block size.
    """
    least = max(size, -(-round(len(order) * MIN_FRACTION) // size) * size)
    ends = range(len(order) % size or size, len(order) - least + 1, size)
    return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class _Costs:
    """The inference cost of each layer, depending on its numbers of input and output channels.

    ``per_pair``, ``per_input`` and ``per_output`` are the cost factors for inputs × outputs, inputs, and outputs.
    """

    per_pair: Numbers
    per_input: Numbers
    per_output: Numbers
    inputs: Numbers
    outputs: Numbers

    @classmethod
    def of(
        cls, graph: ChannelGraph, depthwise: float = DEPTHWISE_MAC_COST, written: float = OUTPUT_WRITE_COST
    ) -> _Costs:
        rows = []
        for entry in graph.layers.values():
            per_pair = per_input = 0.0
            for weight, axes in zip(entry.layer.weights, entry.axes, strict=False):
                if {"i", "e"} & set(axes):
                    per_channel = entry.positions * np.prod(weight.shape) / len(entry.inputs)
                    if "o" in axes:
                        per_pair += per_channel / len(entry.outputs)
                    else:
                        per_input += per_channel * depthwise
            writes = per_pair or per_input or type(entry.layer).__name__ in MERGING
            per_output = writes and written * entry.positions
            rows.append((per_pair, per_input, per_output, len(entry.inputs), len(entry.outputs)))
        return cls(*np.array(rows, np.float64).reshape(-1, 5).T)

    @property
    def total(self) -> float:
        """Total cost of all layers."""
        costs = self.per_pair * self.inputs * self.outputs + self.per_input * self.inputs
        return float((costs + self.per_output * self.outputs).sum())

    def without(self, inputs: Numbers, outputs: Numbers) -> _Costs:
        """Return the costs after removing the given numbers of input and output channels from each layer."""
        return replace(self, inputs=self.inputs - inputs, outputs=self.outputs - outputs)
