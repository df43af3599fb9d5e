"""Structured pruning: whole channels leave, and what stays is a smaller dense model."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.channel_graph import JOINTS, Channels, Wire, Wiring, trace
from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.errors import ModelError
from edgerec.train.backend import copied, keras, reconstructs
from edgerec.train.input_pipeline import ONE_REPLICA
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Pictures that the importance of channels is measured on, and how many share a gradient.
PICTURES, TOGETHER = 1024, 16
# Part of a layer's channels that stays in any case.
LEAST = 0.125
# What an int8 model's time goes by. XNNPACK on x86-64, one thread: 0.033 ns for a multiply-accumulate of a convolution,
# 4 times that for one of a depthwise convolution, 20 times for each number that a layer writes.
# What it leaves out makes it hopeful: a fixed time for each layer, and kernels that compute 16 channels at once.
DEPTHWISE, WRITTEN = 4.0, 20.0
# Int8 kernels compute in blocks of 8 or 16 channels: 12 take the time of 16. A small layer has too few for the larger.
SMALL, MULTIPLES = 32, (8, 16)


def shrink(model: Any, part: float, tune: FineTune | None, *, multiple: int = 0) -> Any:
    """A smaller dense model: channels that matter least are left out, the rest keeps its weights and is fine-tuned.

    Args:
        model: a float tf_keras classifier, functional or Sequential; it is not changed.
        part: of the int8 model's time to save, as :func:`cost` estimates it, 0 to 0.9: a third makes it 1.5 times
            as fast. Whole blocks of channels go, so somewhat more may.
        tune: data to judge the channels by and to fine-tune with, and the schedule; with no epochs they are only
            judged, and with None by their weights alone.
        multiple: layers end at multiples of so many channels; 0 is 16, and 8 for layers with fewer than 32.

    Raises:
        ModelError: there is nothing in it that can be removed.
    """
    if not 0 <= part <= 0.9:
        raise ModelError(f"the part of the time to save is {part:g}, expected 0 to 0.9")
    before, whole = macs(model), cost(model)
    smaller = _removed(model, whole * (1 - part), tune, multiple) if part else model
    log.info(
        "channels removed: %.1f of %.1f million multiply-accumulates and about %.0f%% of the time are left",
        *(macs(smaller) / 1e6, before / 1e6, 100 * cost(smaller) / whole),
    )
    if tune is None or not tune.epochs:
        return smaller
    return fine_tune(partial(copied, smaller), tune, "channel pruning", retraining=True)


def macs(model: Any) -> int:
    """Multiply-accumulates for one picture, in convolutions and dense layers that :mod:`wiring` knows."""
    return int(_Costs.of(trace(model), depthwise=1, written=0).left)


def cost(model: Any) -> float:
    """Estimate of the int8 model's time for one picture, as so many multiply-accumulates of a convolution."""
    return _Costs.of(trace(model)).left


def _removed(model: Any, target: float, tune: FineTune | None, multiple: int) -> Any:
    """The model with a cost of at most ``target``, as far as its layers' least channels allow."""
    wiring = trace(model)
    if wiring.unknown:
        held = ", ".join(f"{name} ({kind})" for name, kind in wiring.unknown.items())
        log.warning("channels stay around layers that channel pruning does not know: %s", held)
    groups = _groups(wiring)
    if not any(len(group) > _multiple(group, multiple) for group in groups):
        raise ModelError(_why_nothing(model, wiring, multiple or MULTIPLES[0]))
    scores = weight_norms(wiring) if tune is None else taylor(model, wiring, tune)
    keep = _choose(wiring, groups, scores, target, multiple)
    smaller = _rebuilt(model, wiring, keep)
    _verify(model, smaller, wiring, keep)
    return smaller


def _groups(wiring: Wiring) -> list[Channels]:
    """The removable channels, those together that the same layers make."""
    makers: dict[int, list[str]] = defaultdict(list)
    for name, wire in wiring.wires.items():
        if wire.makes:
            for channel in set(wire.made[~wiring.fixed[wire.made]].tolist()):
                makers[channel].append(name)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for channel, names in makers.items():
        groups[tuple(names)].append(channel)
    return [np.array(sorted(group)) for group in groups.values()]


def _why_nothing(model: Any, wiring: Wiring, multiple: int) -> str:
    if _groups(wiring):
        return f"no layer of {model.name} has more than {multiple} channels that could be removed"
    held = ", ".join(f"{name} ({kind})" for name, kind in wiring.unknown.items())
    return f"no channel of {model.name} can be removed: " + (
        f"{held} may need all of theirs" if held else "all of them are its classes"
    )


def weight_norms(wiring: Wiring) -> Numbers:
    """Importance by weights: the squared weights that make or use a channel, each layer's by their mean
    (arXiv:1608.08710, arXiv:2301.12900)."""
    scores = np.zeros(len(wiring.fixed))
    for wire in wiring.wires.values():
        if type(wire.layer).__name__ in ("BatchNormalization", "PReLU"):
            continue
        for weight, axes in zip(wire.layer.get_weights(), wire.axes, strict=False):
            for letter in {"i", "o"} & set(axes) if len(axes) > 1 else ():
                channels = _channels(wire, letter)
                norms = (weight.astype(np.float64) ** 2).sum(_others(axes, letter))
                np.add.at(scores, channels, norms / max(norms.mean(), 1e-30))
    return scores


def taylor(model: Any, wiring: Wiring, tune: FineTune) -> Numbers:
    """Importance by loss: what a channel's absence changes to first order (arXiv:1906.10771), root mean square.

    The change is that of the kernels that use the channel: gradient times weight, summed over them.
    """
    tf = require("tensorflow")
    kernels = [
        (layer.weights[0], wire, wire.axes[0])
        for wire in wiring.wires.values()
        if wire.makes and "i" in wire.axes[0]
        for layer in (wire.layer,)
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

    scores = np.zeros(len(wiring.fixed))
    for pixels, classes, *_ in (
        tune.feed(0, ONE_REPLICA).unbatch().batch(TOGETHER, drop_remainder=True).take(PICTURES // TOGETHER)
    ):
        change = np.zeros(len(scores))
        for (_, wire, _), values in zip(kernels, changes(pixels, classes), strict=True):
            np.add.at(change, wire.used, values.numpy())
        scores += change**2
    return np.sqrt(scores)


@dataclass(frozen=True)
class _Costs:
    """The cost of each layer as a function of how many channels it uses and makes.

    ``both``, ``using``, ``making`` are the layers' factors of used × made, of used and of made.
    """

    both: Numbers
    using: Numbers
    making: Numbers
    used: Numbers
    made: Numbers

    @classmethod
    def of(cls, wiring: Wiring, depthwise: float = DEPTHWISE, written: float = WRITTEN) -> _Costs:
        rows = []
        for wire in wiring.wires.values():
            both = using = 0.0
            for weight, axes in zip(wire.layer.weights, wire.axes, strict=False):
                if {"i", "e"} & set(axes):
                    per = wire.positions * np.prod(weight.shape) / len(wire.used)
                    if "o" in axes:
                        both += per / len(wire.made)
                    else:
                        using += per * depthwise
            writes = both or using or type(wire.layer).__name__ in JOINTS
            rows.append((both, using, writes and written * wire.positions, len(wire.used), len(wire.made)))
        return cls(*np.array(rows, np.float64).reshape(-1, 5).T)

    @property
    def left(self) -> float:
        """All layers together."""
        return float((self.both * self.used * self.made + self.using * self.used + self.making * self.made).sum())

    def without(self, used: Numbers, made: Numbers) -> _Costs:
        """After so many channels went, by layer."""
        return replace(self, used=self.used - used, made=self.made - made)


def _choose(wiring: Wiring, groups: list[Channels], scores: Numbers, target: float, multiple: int) -> Mask:
    """Which channels stay, by their number.

    Block by block goes what matters least for the time that it saves.
    """
    whole = costs = _Costs.of(wiring)
    counts = np.zeros((2, len(costs.used), len(scores)), np.float32)  # how often a layer uses, makes a channel
    for number, wire in enumerate(wiring.wires.values()):
        np.add.at(counts[0, number], wire.used, 1)
        np.add.at(counts[1, number], wire.made, 1)
    blocks = [_blocks(group[np.argsort(scores[group], kind="stable")], _multiple(group, multiple)) for group in groups]
    shares = [[counts[..., block].sum(-1) for block in some] for some in blocks]
    gone = [0] * len(groups)  # how many blocks of each group

    def loss(index: int, number: int, saved: float) -> float:
        return float(scores[blocks[index][number]].sum()) / saved

    while costs.left > target:
        nexts = {i: costs.without(*shares[i][n]) for i, n in enumerate(gone) if n < len(blocks[i])}
        if not nexts:
            log.warning("every layer is at its least: about %.0f%% of the time is left", 100 * costs.left / whole.left)
            break
        chosen = min(nexts, key=lambda i: loss(i, gone[i], costs.left - nexts[i].left))
        gone[chosen], costs = gone[chosen] + 1, nexts[chosen]
    while True:  # a large block that went late may have made others needless
        backs = {i: costs.without(*-shares[i][n - 1]) for i, n in enumerate(gone) if n}
        backs = {i: back for i, back in backs.items() if back.left <= target}
        if not backs:
            break
        chosen = max(backs, key=lambda i: loss(i, gone[i] - 1, 1.0))
        gone[chosen], costs = gone[chosen] - 1, backs[chosen]
    keep = np.ones(len(scores), bool)
    for some, count in zip(blocks, gone, strict=True):
        keep[[channel for block in some[:count] for channel in block]] = False
    return keep


def _multiple(group: Channels, asked: int) -> int:
    """What a group's layers end at multiples of."""
    return asked or MULTIPLES[len(group) >= SMALL]


def _blocks(order: Channels, multiple: int) -> list[Channels]:
    """The channels of a group that may go, least important first, in blocks that end at the multiple."""
    least = max(multiple, -(-round(len(order) * LEAST) // multiple) * multiple)
    ends = range(len(order) % multiple or multiple, len(order) - least + 1, multiple)
    return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _rebuilt(model: Any, wiring: Wiring, keep: Mask) -> Any:
    """A new model of the same layers without the channels."""

    def made(layer: Any) -> Any:
        config = layer.get_config()
        wire = wiring.wires.get(layer.name)
        if wire is not None:
            count = int(keep[wire.made].sum())
            for key in ("filters", "units"):
                if key in config:
                    config[key] = count
            if "target_shape" in config:
                config["target_shape"] = (*config["target_shape"][:-1], count)
        return type(layer).from_config(config)

    smaller = keras().models.clone_model(model, clone_function=made)
    for layer in model.layers:
        weights = layer.get_weights()
        wire = wiring.wires.get(layer.name)
        if wire is not None:
            weights = [
                _without(weight, axes, wire, keep) for weight, axes in zip(weights, wire.axes, strict=False)
            ] or weights
        smaller.get_layer(layer.name).set_weights(weights)
    return smaller


def _without(weight: npt.NDArray[Any], axes: str, wire: Wire, keep: Mask) -> npt.NDArray[Any]:
    axes = axes[-weight.ndim :]
    for axis, letter in enumerate(axes):
        if letter in "ieo":
            weight = weight.compress(keep[_channels(wire, letter, weight.shape[axis])], axis)
    return weight


def _channels(wire: Wire, letter: str, count: int = 0) -> Channels:
    """The channels along a weight's axis."""
    if letter == "e":
        return np.repeat(wire.used, count // len(wire.used))
    return wire.made if letter == "o" else wire.used


def _others(axes: str, letter: str) -> tuple[int, ...]:
    return tuple(axis for axis, name in enumerate(axes) if name != letter)


def masked(model: Any, wiring: Wiring, keep: Mask) -> Any:
    """A copy of the model that does not look at the channels that are not kept."""
    copy = copied(model)
    for name, wire in wiring.wires.items():
        if wire.makes:
            layer = copy.get_layer(name)
            kernel, *rest = layer.get_weights()
            shape = [len(wire.used) if letter == "i" else 1 for letter in wire.axes[0]]
            layer.set_weights([kernel * keep[wire.used].reshape(shape), *rest])
    return copy


def _verify(model: Any, smaller: Any, wiring: Wiring, keep: Mask) -> None:
    """Assert that the smaller model computes what the whole one does without the channels."""
    pixels = np.random.default_rng(0).random((4, *model.input_shape[1:]), np.float32)
    expected = np.asarray(masked(model, wiring, keep)(pixels, training=False))
    found = np.asarray(smaller(pixels, training=False))
    difference = float(np.abs(expected - found).max())
    if not difference <= 1e-4 * max(1.0, float(np.abs(expected).max())):
        raise ModelError(
            f"{model.name} without some channels differs from what it should be by {difference:.2g}: "
            "one of its layers does not treat channels as its kind says; leave channel pruning out"
        )
