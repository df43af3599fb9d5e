"""Raise errors for models and layers that compression does not support, with the name and alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from edgerec.errors import ModelError
from edgerec.importing.lowering import ALONE, INSIDE, activation_name
from edgerec.importing.tfmot_support import prunable, trainable_in_int8
from edgerec.train.backend import keras

# The next use of the model: quantization-aware training (``pqat`` also preserves zero weights), pruning, or
# post-training quantization. The purpose determines which layers are accepted, but not how the model is rewritten.
Purpose = Literal["qat", "pqat", "prune", "ptq"]

ALTERNATIVES = "build the model without it, or use --method ptq or float16"


def check_finite(model: Any) -> None:
    """Raise :class:`ModelError` if a layer has weights that are NaN or infinite."""
    for layer in layers_of(model):
        if isinstance(layer, keras().Model):
            continue
        for weight in layer.weights:
            if not np.isfinite(np.asarray(weight)).all():
                raise ModelError(
                    f"layer {layer.name!r} of model {model.name!r} has weights that are NaN or infinite: "
                    "train the model again with a lower learning rate"
                )


def refuse_code(model: Any) -> None:
    """Raise :class:`ModelError` for code outside of the graph, which cannot be copied, and for Lambda layers."""
    models = [model, *(layer for layer in layers_of(model) if isinstance(layer, keras().Model))]
    if without_graph := [m for m in models if not getattr(m, "_is_graph_network", False)]:
        raise ModelError(
            f"model {without_graph[0].name!r} has no graph: build it as a functional or Sequential model with an Input"
        )
    for layer in layers_of(model):
        if isinstance(layer, keras().layers.Lambda):
            raise ModelError(f"layer {layer.name!r} is a Lambda, whose code is never run: replace it by Keras layers")


def refuse(layer: Any, purpose: Purpose) -> None:
    """Raise :class:`ModelError` if ``purpose`` does not support a layer of the rewritten model."""
    layers = keras().layers
    what = getattr(layer, "symbol", None)
    name = f"layer {layer.name!r} ({'operator ' + what if what else type(layer).__name__})"
    if purpose == "ptq" and _is_loop(layer):
        raise ModelError(
            f"{name} is a loop, in which the converter keeps float tensors: use an LSTM, or an input of a fixed length"
        )
    if purpose == "prune" and not (isinstance(layer, layers.InputLayer) or prunable(layer)):
        raise ModelError(f"{name} is not supported by pruning: {ALTERNATIVES}")
    if purpose in ("qat", "pqat") and not isinstance(layer, layers.InputLayer):
        _refuse_in_training(layer, name, purpose)


def _is_loop(layer: Any) -> bool:
    """Return whether a recurrent layer is a loop in TFLite. An LSTM is not, because TFLite has an operator for it."""
    layers = keras().layers
    if isinstance(layer, layers.Bidirectional):
        return _is_loop(layer.forward_layer)
    return isinstance(layer, layers.RNN) and not isinstance(layer, layers.LSTM) and not layer.unroll


def _refuse_in_training(layer: Any, name: str, purpose: Purpose) -> None:
    layers = keras().layers
    if isinstance(layer, (layers.RNN, layers.Bidirectional, layers.TimeDistributed)):
        raise ModelError(
            f"{name} processes a sequence step by step, which quantization-aware training does not support: "
            "use --method ptq"
        )
    if not trainable_in_int8(layer):
        raise ModelError(f"{name} is not supported by quantization-aware training: {ALTERNATIVES}")
    activation, supported = activation_name(layer), ALONE if isinstance(layer, layers.Activation) else INSIDE
    if activation not in supported:
        raise ModelError(
            f"{name} has the activation {activation}, which quantization-aware training does not support "
            f"(supported: {', '.join(ALONE)}): {ALTERNATIVES}"
        )
    if purpose == "pqat" and isinstance(layer, layers.Conv2DTranspose):
        raise ModelError(
            f"{name} cannot keep its zero weights in quantization-aware training: "
            "use UpSampling2D and Conv2D instead, or leave pruning out"
        )


def layers_of(model: Any) -> Iterator[Any]:
    """Yield all layers, including those of nested models and wrappers."""
    yield from model._flatten_layers(include_self=False, recursive=True)
