"""Layers that tensorflow-model-optimization supports."""

from __future__ import annotations

from typing import Any

# Layers without weights that get a quantization config which only fake-quantizes the output.
ANNOTATED = ("Maximum", "Minimum", "Multiply", "Subtract")

# Layers that tfmot replaces by other layers before quantization.
TRANSFORMED = ("BatchNormalization", "SeparableConv1D", "SeparableConv2D")


def trainable_in_int8(layer: Any) -> bool:
    """Return whether quantization-aware training supports this type of layer.

    Batch normalization is supported only after a convolution.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_registry as registry,
    )

    kinds = (*ANNOTATED, *TRANSFORMED)
    return type(layer).__name__ in kinds or registry.Default8BitQuantizeRegistry().supports(layer)


def prunable(layer: Any) -> bool:
    """Return whether pruning accepts this type of layer. It does not prune all of the layers that it accepts."""
    from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry

    return hasattr(layer, "get_prunable_weights") or prune_registry.PruneRegistry.supports(layer)
