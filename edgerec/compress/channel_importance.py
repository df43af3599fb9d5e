"""Measure how strongly a model's outputs depend on each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.channel_graph import ChannelGraph, other_axes
from edgerec.compress.finetune import FineTune
from edgerec.train.backend import keras
from edgerec.train.input_pipeline import ONE_REPLICA
from edgerec.train.training_step import reconstructs
from edgerec.utils.optional import require

Numbers = npt.NDArray[np.float64]

IMAGES, BATCH_SIZE = 1024, 16


def weight_importance(graph: ChannelGraph) -> Numbers:
    """Return each channel's importance, computed from the weights alone, as a float64 array.

    The importance is the sum of the squared weights that create or use the channel, divided by the mean over the
    layer's channels (arXiv:1608.08710, arXiv:2301.12900).
    """
    scores = np.zeros(len(graph.fixed))
    for entry in graph.layers.values():
        if type(entry.layer).__name__ in ("BatchNormalization", "PReLU"):
            continue
        for weight, axes in zip(entry.layer.get_weights(), entry.axes, strict=False):
            for letter in {"i", "o"} & set(axes) if len(axes) > 1 else ():
                norms = (weight.astype(np.float64) ** 2).sum(other_axes(axes, letter))
                np.add.at(scores, entry.along(letter), norms / max(norms.mean(), 1e-30))
    return scores


def taylor_importance(model: Any, graph: ChannelGraph, tune: FineTune) -> Numbers:
    """Return each channel's importance, measured by its effect on the loss, as a float64 array.

    The importance is the root mean square of the first-order change of the loss if the channel is removed: the sum of
    gradient times weight over the kernels that use the channel (arXiv:1906.10771, up to a constant factor).
    """
    tf = require("tensorflow")
    entries = [entry for entry in graph.layers.values() if entry.creates and "i" in entry.axes[0]]
    kernels = [entry.layer.weights[0] for entry in entries]

    @tf.function  # type: ignore[untyped-decorator]
    def changes(pixels: Any, classes: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            outputs, losses = model(pixels, training=False), keras().losses
            if reconstructs(model):
                loss = tf.reduce_sum(losses.mean_squared_error(pixels, outputs))
            else:
                loss = tf.reduce_sum(losses.sparse_categorical_crossentropy(classes, outputs))
        gradients = tape.gradient(loss, kernels)
        return [
            tf.reduce_sum(kernel * gradient, other_axes(entry.axes[0], "i"))
            for entry, kernel, gradient in zip(entries, kernels, gradients, strict=True)
        ]

    scores = np.zeros(len(graph.fixed))
    for pixels, classes, *_ in (
        tune.feed(0, ONE_REPLICA).unbatch().batch(BATCH_SIZE, drop_remainder=True).take(IMAGES // BATCH_SIZE)
    ):
        change = np.zeros(len(scores))
        for entry, values in zip(entries, changes(pixels, classes), strict=True):
            np.add.at(change, entry.inputs, values.numpy())
        scores += change**2
    return np.sqrt(scores)
