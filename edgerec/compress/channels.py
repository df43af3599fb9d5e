"""Structured pruning: remove whole channels, so that the remaining model is dense and smaller."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.channel_graph import MERGING, ChannelGraph, Channels, LayerChannels, trace
from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.errors import ModelError
from edgerec.train.backend import copied, keras
from edgerec.train.input_pipeline import ONE_REPLICA
from edgerec.train.training_step import reconstructs
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Number of images on which the importance of channels is measured, and number of images per gradient.
IMAGES, BATCH_SIZE = 1024, 16
# Fraction of a layer's channels that is never removed.
MIN_FRACTION = 0.125
# Costs relative to one multiply-accumulate of a convolution: of one multiply-accumulate of a depthwise convolution, and
# of each number that a layer writes. Measured with int8 models, XNNPACK on x86-64, one thread, 0.033 ns for a
# multiply-accumulate of a convolution. The estimate is optimistic, because it ignores the fixed time of each layer and
# kernels that always compute 16 channels.
DEPTHWISE_COST, WRITE_COST = 4.0, 20.0
# Int8 kernels compute blocks of 8 or 16 channels, so 12 channels take as long as 16. Layers with fewer than SMALL
# channels use the smaller block, because larger blocks would remove too much at once.
SMALL, MULTIPLES = 32, (8, 16)


def shrink(model: Any, fraction: float, tune: FineTune | None, *, multiple: int = 0) -> Any:
    """Remove the least important channels of a model, keep the other weights, and fine-tune the smaller model.

    Args:
        model: a float tf_keras classifier, functional or Sequential; it is not changed.
        fraction: fraction of the int8 model's inference time to save, as :func:`cost` estimates it, 0 to 0.9. A third
            makes the model 1.5 times as fast. Slightly more may be saved, because channels are removed in blocks.
        tune: data for measuring the importance of channels and for fine-tuning, and the schedule. With 0 epochs, the
            model is not fine-tuned. With None, the importance is computed from the weights alone.
        multiple: the number of channels of a layer stays a multiple of this; 0 means 16, or 8 for layers with fewer
            than 32 channels.

    Raises:
        ModelError: the model has no channels that can be removed.
    """
    if not 0 <= fraction <= 0.9:
        raise ModelError(f"cannot save the fraction {fraction:g} of the inference time: expected 0 to 0.9")
    original_macs, original_cost = macs(model), cost(model)
    smaller = _removed(model, original_cost * (1 - fraction), tune, multiple) if fraction else model
    log.info(
        "channels removed: %.1f of %.1f million multiply-accumulates and about %.0f%% of the inference time remain",
        *(macs(smaller) / 1e6, original_macs / 1e6, 100 * cost(smaller) / original_cost),
    )
    if tune is None or not tune.epochs:
        return smaller
    return fine_tune(partial(copied, smaller), tune, "channel pruning", retraining=True)


def macs(model: Any) -> int:
    """Return the number of multiply-accumulates per image in convolutions and dense layers."""
    return int(_Costs.of(trace(model), depthwise=1, written=0).left)


def cost(model: Any) -> float:
    """Estimate the int8 model's time per image, in units of one multiply-accumulate of a convolution."""
    return _Costs.of(trace(model)).left


def _removed(model: Any, target: float, tune: FineTune | None, multiple: int) -> Any:
    """Return the model with a cost of at most ``target``, or with the smallest cost that the layers allow."""
    graph = trace(model)
    if graph.unknown:
        names = ", ".join(f"{name} ({kind})" for name, kind in graph.unknown.items())
        log.warning("channels of these layers are not removed, because channel pruning does not know them: %s", names)
    groups = _groups(graph)
    if not any(len(group) > _multiple(group, multiple) for group in groups):
        raise ModelError(_why_nothing(model, graph, multiple or MULTIPLES[0]))
    scores = weight_importance(graph) if tune is None else taylor_importance(model, graph, tune)
    keep = _choose(graph, groups, scores, target, multiple)
    smaller = _rebuilt(model, graph, keep)
    _verify(model, smaller, graph, keep)
    return smaller


def _groups(graph: ChannelGraph) -> list[Channels]:
    """Group the removable channels by the layers that create them."""
    makers: dict[int, list[str]] = defaultdict(list)
    for name, entry in graph.layers.items():
        if entry.creates:
            for channel in set(entry.outputs[~graph.fixed[entry.outputs]].tolist()):
                makers[channel].append(name)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for channel, names in makers.items():
        groups[tuple(names)].append(channel)
    return [np.array(sorted(group)) for group in groups.values()]


def _why_nothing(model: Any, graph: ChannelGraph, multiple: int) -> str:
    if _groups(graph):
        return f"cannot remove channels: no layer of {model.name} has more than {multiple} removable channels"
    names = ", ".join(f"{name} ({kind})" for name, kind in graph.unknown.items())
    return f"cannot remove channels of {model.name}: " + (
        f"{names} may need all of their channels" if names else "the only channels are the classes"
    )


def weight_importance(graph: ChannelGraph) -> Numbers:
    """Return the importance of each channel by its weights, float64 ``(channels,)``.

    The importance is the sum of the squared weights that create or use the channel, divided by the mean over the
    layer's channels (arXiv:1608.08710, arXiv:2301.12900).
    """
    scores = np.zeros(len(graph.fixed))
    for entry in graph.layers.values():
        if type(entry.layer).__name__ in ("BatchNormalization", "PReLU"):
            continue
        for weight, axes in zip(entry.layer.get_weights(), entry.axes, strict=False):
            for letter in {"i", "o"} & set(axes) if len(axes) > 1 else ():
                channels = _channels(entry, letter)
                norms = (weight.astype(np.float64) ** 2).sum(_others(axes, letter))
                np.add.at(scores, channels, norms / max(norms.mean(), 1e-30))
    return scores


def taylor_importance(model: Any, graph: ChannelGraph, tune: FineTune) -> Numbers:
    """Return the importance of each channel by its effect on the loss, float64 ``(channels,)``.

    The importance is the root mean square of the first-order change of the loss if the channel is removed: the sum of
    gradient times weight over the kernels that use the channel (arXiv:1906.10771, up to a constant factor).
    """
    tf = require("tensorflow")
    kernels = [
        (layer.weights[0], entry, entry.axes[0])
        for entry in graph.layers.values()
        if entry.creates and "i" in entry.axes[0]
        for layer in (entry.layer,)
    ]

    @tf.function  # type: ignore[untyped-decorator]
    def changes(pixels: Any, classes: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([kernel for kernel, _, _ in kernels])
            outputs, losses = model(pixels, training=False), keras().losses
            if reconstructs(model):
                loss = tf.reduce_sum(losses.mean_squared_error(pixels, outputs))
            else:
                loss = tf.reduce_sum(losses.sparse_categorical_crossentropy(classes, outputs))
        gradients = tape.gradient(loss, [kernel for kernel, _, _ in kernels])
        return [
            tf.reduce_sum(kernel * gradient, _others(axes, "i"))
            for (kernel, _, axes), gradient in zip(kernels, gradients, strict=True)
        ]

    scores = np.zeros(len(graph.fixed))
    for pixels, classes, *_ in (
        tune.feed(0, ONE_REPLICA).unbatch().batch(BATCH_SIZE, drop_remainder=True).take(IMAGES // BATCH_SIZE)
    ):
        change = np.zeros(len(scores))
        for (_, entry, _), values in zip(kernels, changes(pixels, classes), strict=True):
            np.add.at(change, entry.inputs, values.numpy())
        scores += change**2
    return np.sqrt(scores)


@dataclass(frozen=True)
class _Costs:
    """Cost of each layer as a function of its numbers of input and output channels.

    ``both``, ``using`` and ``making`` are the cost factors of inputs × outputs, of inputs, and of outputs.
    """

    both: Numbers
    using: Numbers
    making: Numbers
    used: Numbers
    made: Numbers

    @classmethod
    def of(cls, graph: ChannelGraph, depthwise: float = DEPTHWISE_COST, written: float = WRITE_COST) -> _Costs:
        rows = []
        for entry in graph.layers.values():
            both = using = 0.0
            for weight, axes in zip(entry.layer.weights, entry.axes, strict=False):
                if {"i", "e"} & set(axes):
                    per = entry.positions * np.prod(weight.shape) / len(entry.inputs)
                    if "o" in axes:
                        both += per / len(entry.outputs)
                    else:
                        using += per * depthwise
            writes = both or using or type(entry.layer).__name__ in MERGING
            rows.append((both, using, writes and written * entry.positions, len(entry.inputs), len(entry.outputs)))
        return cls(*np.array(rows, np.float64).reshape(-1, 5).T)

    @property
    def left(self) -> float:
        """Total cost of all layers."""
        return float((self.both * self.used * self.made + self.using * self.used + self.making * self.made).sum())

    def without(self, used: Numbers, made: Numbers) -> _Costs:
        """Return the costs after this many input and output channels of each layer were removed."""
        return replace(self, used=self.used - used, made=self.made - made)


def _choose(graph: ChannelGraph, groups: list[Channels], scores: Numbers, target: float, multiple: int) -> Mask:
    """Return a mask of the channels to keep, indexed by channel number.

    The block with the lowest importance per saved cost is removed first.
    """
    original_cost = costs = _Costs.of(graph)
    counts = np.zeros((2, len(costs.used), len(scores)), np.float32)  # how often a layer reads and writes a channel
    for number, entry in enumerate(graph.layers.values()):
        np.add.at(counts[0, number], entry.inputs, 1)
        np.add.at(counts[1, number], entry.outputs, 1)
    blocks = [_blocks(group[np.argsort(scores[group], kind="stable")], _multiple(group, multiple)) for group in groups]
    shares = [[counts[..., block].sum(-1) for block in group_blocks] for group_blocks in blocks]
    removed_blocks = [0] * len(groups)  # number of removed blocks of each group

    def loss(index: int, number: int, saved: float) -> float:
        return float(scores[blocks[index][number]].sum()) / saved

    while costs.left > target:
        nexts = {i: costs.without(*shares[i][n]) for i, n in enumerate(removed_blocks) if n < len(blocks[i])}
        if not nexts:
            remaining = 100 * costs.left / original_cost.left
            log.warning("no more channels can be removed: about %.0f%% of the inference time remains", remaining)
            break
        chosen = min(nexts, key=lambda i: loss(i, removed_blocks[i], costs.left - nexts[i].left))
        removed_blocks[chosen], costs = removed_blocks[chosen] + 1, nexts[chosen]
    while True:  # a large block that was removed late may make the removal of earlier blocks unnecessary
        backs = {i: costs.without(*-shares[i][n - 1]) for i, n in enumerate(removed_blocks) if n}
        backs = {i: back for i, back in backs.items() if back.left <= target}
        if not backs:
            break
        chosen = max(backs, key=lambda i: loss(i, removed_blocks[i] - 1, 1.0))
        removed_blocks[chosen], costs = removed_blocks[chosen] - 1, backs[chosen]
    keep = np.ones(len(scores), bool)
    for group_blocks, count in zip(blocks, removed_blocks, strict=True):
        keep[[channel for block in group_blocks[:count] for channel in block]] = False
    return keep


def _multiple(group: Channels, multiple: int) -> int:
    """Return the number of channels in a block of this group."""
    return multiple or MULTIPLES[len(group) >= SMALL]


def _blocks(order: Channels, multiple: int) -> list[Channels]:
    """Return the removable channels of a group, the least important first, in blocks.

    The number of remaining channels is a multiple of the block size.
    """
    least = max(multiple, -(-round(len(order) * MIN_FRACTION) // multiple) * multiple)
    ends = range(len(order) % multiple or multiple, len(order) - least + 1, multiple)
    return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _rebuilt(model: Any, graph: ChannelGraph, keep: Mask) -> Any:
    """Build a model with the same layers without the removed channels."""

    def copy_layer(layer: Any) -> Any:
        config = layer.get_config()
        entry = graph.layers.get(layer.name)
        if entry is not None:
            count = int(keep[entry.outputs].sum())
            for key in ("filters", "units"):
                if key in config:
                    config[key] = count
            if "target_shape" in config:
                config["target_shape"] = (*config["target_shape"][:-1], count)
        return type(layer).from_config(config)

    smaller = keras().models.clone_model(model, clone_function=copy_layer)
    for layer in model.layers:
        weights = layer.get_weights()
        entry = graph.layers.get(layer.name)
        if entry is not None:
            weights = [
                _without(weight, axes, entry, keep) for weight, axes in zip(weights, entry.axes, strict=False)
            ] or weights
        smaller.get_layer(layer.name).set_weights(weights)
    return smaller


def _without(weight: npt.NDArray[Any], axes: str, entry: LayerChannels, keep: Mask) -> npt.NDArray[Any]:
    axes = axes[-weight.ndim :]
    for axis, letter in enumerate(axes):
        if letter in "ieo":
            weight = weight.compress(keep[_channels(entry, letter, weight.shape[axis])], axis)
    return weight


def _channels(entry: LayerChannels, letter: str, count: int = 0) -> Channels:
    """Return the channel numbers along an axis of a weight."""
    if letter == "e":
        return np.repeat(entry.inputs, count // len(entry.inputs))
    return entry.outputs if letter == "o" else entry.inputs


def _others(axes: str, letter: str) -> tuple[int, ...]:
    return tuple(axis for axis, name in enumerate(axes) if name != letter)


def masked(model: Any, graph: ChannelGraph, keep: Mask) -> Any:
    """Return a copy of the model whose kernels ignore the removed channels."""
    copy = copied(model)
    for name, entry in graph.layers.items():
        if entry.creates:
            layer = copy.get_layer(name)
            kernel, *rest = layer.get_weights()
            shape = [len(entry.inputs) if letter == "i" else 1 for letter in entry.axes[0]]
            layer.set_weights([kernel * keep[entry.inputs].reshape(shape), *rest])
    return copy


def _verify(model: Any, smaller: Any, graph: ChannelGraph, keep: Mask) -> None:
    """Check that the smaller model computes the same outputs as the original model with the channels masked."""
    pixels = np.random.default_rng(0).random((4, *model.input_shape[1:]), np.float32)
    expected = np.asarray(masked(model, graph, keep)(pixels, training=False))
    actual = np.asarray(smaller(pixels, training=False))
    difference = float(np.abs(expected - actual).max())
    if not difference <= 1e-4 * max(1.0, float(np.abs(expected).max())):
        raise ModelError(
            f"cannot remove channels: the smaller {model.name} differs from the expected outputs by {difference:.2g}, "
            "maybe because a layer's class does not process channels as its name says; leave channel pruning out"
        )
