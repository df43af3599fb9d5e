"""What compression cannot take, said by name, with the ways on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from edgerec.errors import ModelError
from edgerec.importing.lowering import ALONE, INSIDE, activation_name
from edgerec.importing.tfmot_support import prunable, trainable_in_int8
from edgerec.train.backend import keras

# What the model will be used for next: quantization-aware training (``pqat``: with its zeros preserved), pruning,
# post-training quantization. It decides what is refused, not what is changed.
Purpose = Literal["qat", "pqat", "prune", "ptq"]

WAYS_ON = "build the model without it, or use --method ptq or float16"


def check_finite(model: Any) -> None:
    """Refuse weights that are NaN or infinite, by their layer; raises :class:`ModelError`."""
    for layer in layers_of(model):
        if isinstance(layer, keras().Model):
            continue
        for weight in layer.weights:
            if not np.isfinite(np.asarray(weight)).all():
                raise ModelError(
                    f"layer {layer.name!r} of model {model.name!r} has weights that are NaN or infinite: "
                    "train it again, at a lower learning rate"
                )


def refuse_code(model: Any) -> None:
    """Refuse models whose code is not in their graph: it could not be copied, and a Lambda's is never run."""
    models = [model, *(layer for layer in layers_of(model) if isinstance(layer, keras().Model))]
    if loose := [m for m in models if not getattr(m, "_is_graph_network", False)]:
        raise ModelError(
            f"model {loose[0].name!r} has no known graph: build it as a functional or Sequential model with an Input"
        )
    for layer in layers_of(model):
        if isinstance(layer, keras().layers.Lambda):
            raise ModelError(f"layer {layer.name!r} is a Lambda, whose code is never run: write it as Keras layers")


def refuse(layer: Any, purpose: Purpose) -> None:
    """Refuse a layer of the adapted model that ``purpose`` cannot take."""
    layers = keras().layers
    what = getattr(layer, "symbol", None)
    name = f"layer {layer.name!r} ({'operator ' + what if what else type(layer).__name__})"
    if purpose == "ptq" and _is_loop(layer):
        raise ModelError(
            f"{name} is a loop, in which the converter keeps float numbers: use an LSTM, or an input of a fixed length"
        )
    if purpose == "prune" and not (isinstance(layer, layers.InputLayer) or prunable(layer)):
        raise ModelError(f"{name} is unknown to pruning: {WAYS_ON}")
    if purpose in ("qat", "pqat") and not isinstance(layer, layers.InputLayer):
        _refuse_in_training(layer, name, purpose)


def _is_loop(layer: Any) -> bool:
    """Whether a recurrent layer runs as a loop in TFLite; an LSTM is an operator of its own."""
    layers = keras().layers
    if isinstance(layer, layers.Bidirectional):
        return _is_loop(layer.forward_layer)
    return isinstance(layer, layers.RNN) and not isinstance(layer, layers.LSTM) and not layer.unroll


def _refuse_in_training(layer: Any, name: str, purpose: Purpose) -> None:
    layers = keras().layers
    if isinstance(layer, (layers.RNN, layers.Bidirectional, layers.TimeDistributed)):
        raise ModelError(
            f"{name} runs along a sequence, and quantization-aware training cannot round its state from step to step: "
            "use --method ptq"
        )
    if not trainable_in_int8(layer):
        raise ModelError(f"{name} is unknown to quantization-aware training: {WAYS_ON}")
    activation, taken = activation_name(layer), ALONE if isinstance(layer, layers.Activation) else INSIDE
    if activation not in taken:
        raise ModelError(
            f"{name} has the activation {activation}, unknown to quantization-aware training "
            f"(known: {', '.join(ALONE)}): {WAYS_ON}"
        )
    if purpose == "pqat" and isinstance(layer, layers.Conv2DTranspose):
        raise ModelError(
            f"{name} cannot keep its zeros in quantization-aware training: "
            "use UpSampling2D and Conv2D in its place, or leave pruning out"
        )


def layers_of(model: Any) -> Iterator[Any]:
    """Every layer, those of nested models and wrappers too."""
    yield from model._flatten_layers(include_self=False, recursive=True)
