"""Remove whole channels from a model to make it smaller and faster (structured pruning).

tensorflow-model-optimization cannot do this. It only sets weights to zero.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.channel_graph import ChannelGraph, LayerChannels, trace
from edgerec.compress.channel_importance import taylor_importance, weight_importance
from edgerec.compress.channel_selection import (
    MULTIPLES,
    Mask,
    block_size,
    choose_channels,
    cost,
    macs,
    removable_groups,
)
from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import copied, with_layers

log = logging.getLogger(__name__)


def shrink(model: Any, fraction: float, tune: FineTune | None, *, multiple: int = 0) -> Any:
    """Remove a model's least important channels, keep the other weights, and fine-tune the smaller model.

    Args:
        model: a float tf_keras classifier, functional or Sequential; it is not changed.
        fraction: fraction of the int8 model's inference time to save, as estimated by :func:`cost`, 0 to 0.9. A third
            makes the model 1.5 times as fast. Slightly more may be saved, because channels are removed in blocks.
        tune: data for measuring the importance of channels and for fine-tuning, and the schedule. With 0 epochs, the
            model is not fine-tuned. With None, the importance is computed from the weights alone.
        multiple: number of channels per block. Layers keep a multiple of this number. 0 means 16, or 8 for layers with
            fewer than 32 channels.

    Raises:
        ModelError: the model has no removable channels.
    """
    if not 0 <= fraction <= 0.9:
        raise ModelError(f"cannot reduce the inference time by {fraction:g}: expected a fraction from 0 to 0.9")
    original_macs, original_cost = macs(model), cost(model)
    smaller = _removed(model, original_cost * (1 - fraction), tune, multiple) if fraction else model
    log.info(
        "channels removed: %.1f of %.1f million multiply-accumulates and about %.0f%% of the inference time remain",
        *(macs(smaller) / 1e6, original_macs / 1e6, 100 * cost(smaller) / original_cost),
    )
    if tune is None or not tune.epochs:
        return smaller
    return fine_tune(partial(copied, smaller), tune, "channel pruning", retraining=True)


def _removed(model: Any, target: float, tune: FineTune | None, multiple: int) -> Any:
    """Remove channels until the cost is at most ``target`` or no more channels can be removed."""
    graph = trace(model)
    if graph.unknown:
        names = ", ".join(f"{name} ({kind})" for name, kind in graph.unknown.items())
        log.warning("channel pruning does not support these layers, and keeps their channels: %s", names)
    groups = removable_groups(graph)
    if not any(len(group) > block_size(group, multiple) for group in groups):
        raise ModelError(_why_nothing(model, graph, multiple or MULTIPLES[0]))
    scores = weight_importance(graph) if tune is None else taylor_importance(model, graph, tune)
    keep = choose_channels(graph, groups, scores, target, multiple)
    smaller = without_channels(model, graph, keep)
    _verify(model, smaller, graph, keep)
    return smaller


def _why_nothing(model: Any, graph: ChannelGraph, multiple: int) -> str:
    if removable_groups(graph):
        return f"cannot remove channels: no layer of {model.name} has more than {multiple} removable channels"
    names = ", ".join(f"{name} ({kind})" for name, kind in graph.unknown.items())
    return f"cannot remove channels from {model.name}: " + (
        f"{names} may need all of their channels" if names else "the only channels are the classes"
    )


def without_channels(model: Any, graph: ChannelGraph, keep: Mask) -> Any:
    """Return a copy of the model that contains only the channels in the mask ``keep``."""

    def smaller_layer(layer: Any) -> Any:
        config, entry = layer.get_config(), graph.layers.get(layer.name)
        if entry is not None:
            count = int(keep[entry.outputs].sum())
            config |= {key: count for key in ("filters", "units") if key in config}
            if "target_shape" in config:
                config["target_shape"] = (*config["target_shape"][:-1], count)
        return type(layer).from_config(config)

    smaller = with_layers(model, smaller_layer)
    for layer in model.layers:
        weights, entry = layer.get_weights(), graph.layers.get(layer.name)
        if entry is not None and entry.axes:
            weights = [_without(weight, axes, entry, keep) for weight, axes in zip(weights, entry.axes, strict=False)]
        smaller.get_layer(layer.name).set_weights(weights)
    return smaller


def _without(weight: npt.NDArray[Any], axes: str, entry: LayerChannels, keep: Mask) -> npt.NDArray[Any]:
    for axis, letter in enumerate(axes[-weight.ndim :]):
        if letter in "ieo":
            weight = weight.compress(keep[entry.along(letter, weight.shape[axis])], axis)
    return weight


def _masked(model: Any, graph: ChannelGraph, keep: Mask) -> Any:
    """Return a copy of the model in which the weights of all channels outside the mask ``keep`` are zero."""
    copy = copied(model)
    for name, entry in graph.layers.items():
        if entry.creates:
            layer = copy.get_layer(name)
            kernel, *rest = layer.get_weights()
            shape = [len(entry.inputs) if letter == "i" else 1 for letter in entry.axes[0]]
            layer.set_weights([kernel * keep[entry.inputs].reshape(shape), *rest])
    return copy


def _verify(model: Any, smaller: Any, graph: ChannelGraph, keep: Mask) -> None:
    """Check that the smaller model computes the same outputs as the original with masked channels."""
    pixels = np.random.default_rng(0).random((4, *model.input_shape[1:]), np.float32)
    expected = np.asarray(_masked(model, graph, keep)(pixels, training=False))
    actual = np.asarray(smaller(pixels, training=False))
    difference = float(np.abs(expected - actual).max())
    if not difference <= 1e-4 * max(1.0, float(np.abs(expected).max())):
        raise ModelError(
            f"cannot remove channels from {model.name}: the smaller model's outputs differ from the expected "
            f"outputs by {difference:.2g}. A custom layer with the same name as a Keras layer may process channels "
            "differently. Choose a --method that does not remove channels"
        )
