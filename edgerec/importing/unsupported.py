"""Raise errors that suggest alternatives if compression does not support a model or layer."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import layers_of
from edgerec.importing.lowering import ALONE, INSIDE, activation_name
from edgerec.train.backend import keras

# The compression step ``pqat`` is quantization-aware training that keeps pruned weights at zero.
Purpose = Literal["qat", "pqat", "prune", "ptq"]

# Layers without weights, for which only the output is fake-quantized.
ANNOTATED = ("Maximum", "Minimum", "Multiply", "Subtract")
# Layers that tfmot replaces with other layers before quantization.
_TRANSFORMED = ("BatchNormalization", "SeparableConv1D", "SeparableConv2D")

ALTERNATIVES = "build the model without it, or use --method ptq or float16"


def check_finite(model: Any, where: str) -> None:
    """Raise :class:`ModelError` if a model has NaN or infinite weights.

    Args:
        model: a tf_keras model or a :class:`~edgerec.importing.saved_model.SavedModel`.
        where: model name, for the error message.
    """
    for variable in model.variables:
        if not np.isfinite(variable.numpy()).all():
            raise ModelError(
                f"{where} has NaN or infinite weights in {variable.name!r}: train the model again with a lower "
                "learning rate"
            )


def refuse_code(model: Any) -> None:
    """Raise :class:`ModelError` if a model is neither functional nor Sequential, or has Lambda layers.

    The Python code of such a model cannot be copied to the rewritten model.
    """
    models = [model, *(layer for layer in layers_of(model) if isinstance(layer, keras().Model))]
    if without_graph := [m for m in models if not getattr(m, "_is_graph_network", False)]:
        raise ModelError(
            f"model {without_graph[0].name!r} has no graph: build it as a functional or Sequential model with an Input"
        )
    for layer in layers_of(model):
        if isinstance(layer, keras().layers.Lambda):
            raise ModelError(
                f"layer {layer.name!r} is a Lambda, whose code edgerec never executes: replace it with Keras layers"
            )


def refuse(layer: Any, purpose: Purpose) -> None:
    """Raise :class:`ModelError` if the compression step ``purpose`` does not support a layer."""
    layers = keras().layers
    what = getattr(layer, "symbol", None)
    name = f"layer {layer.name!r} ({'operator ' + what if what else type(layer).__name__})"
    if purpose == "ptq" and _is_loop(layer):
        raise ModelError(
            f"{name} is a loop, which the converter cannot fully quantize: use an LSTM or a fixed input length"
        )
    if purpose == "prune" and not (isinstance(layer, layers.InputLayer) or _prunable(layer)):
        raise ModelError(f"{name} is not supported by pruning: {ALTERNATIVES}")
    if purpose in ("qat", "pqat") and not isinstance(layer, layers.InputLayer):
        _refuse_in_training(layer, name, purpose)


def _is_loop(layer: Any) -> bool:
    """Return whether TFLite implements a recurrent layer as a loop. An LSTM becomes a single operator instead."""
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
    if not _trainable_in_int8(layer):
        raise ModelError(f"{name} is not supported by quantization-aware training: {ALTERNATIVES}")
    activation, supported = activation_name(layer), ALONE if isinstance(layer, layers.Activation) else INSIDE
    if activation not in supported:
        raise ModelError(
            f"{name} has the activation {activation}, which quantization-aware training does not support "
            f"(supported: {', '.join(ALONE)}): {ALTERNATIVES}"
        )
    if purpose == "pqat" and isinstance(layer, layers.Conv2DTranspose):
        raise ModelError(
            f"{name} would lose its pruned (zero) weights in quantization-aware training: replace it with UpSampling2D "
            "and Conv2D, or do not prune"
        )


def _trainable_in_int8(layer: Any) -> bool:
    """Return whether quantization-aware training supports this layer type.

    Batch normalization is supported only after a convolution.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_registry as registry,
    )

    kinds = (*ANNOTATED, *_TRANSFORMED)
    return type(layer).__name__ in kinds or registry.Default8BitQuantizeRegistry().supports(layer)


def _prunable(layer: Any) -> bool:
    """Return whether pruning supports this layer type. Some supported layers have no prunable weights."""
    from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry

    return hasattr(layer, "get_prunable_weights") or prune_registry.PruneRegistry.supports(layer)
