"""What tensorflow-model-optimization knows, and a rounding for what int8 runs and it does not know."""

from __future__ import annotations

from typing import Any

from edgerec.optional import require
from edgerec.train.keras import as_written, keras

# Layers without weights whose output is rounded, and that is all.
ANNOTATED = ("Maximum", "Minimum", "Multiply", "Subtract")

# Layers that tfmot turns into others before it rounds anything.
TRANSFORMED = ("BatchNormalization", "SeparableConv1D", "SeparableConv2D")


def annotate(model: Any) -> Any:
    """``model`` as ``quantize_apply`` wants it: every layer marked, with a rounding where tfmot has none of its own."""
    tfmot = require("tensorflow_model_optimization")
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_configs as configs,
    )

    def mark(layer: Any) -> Any:
        own = configs.Default8BitOutputQuantizeConfig() if type(layer).__name__ in ANNOTATED else None
        return tfmot.quantization.keras.quantize_annotate_layer(layer, own)

    return as_written(keras().models.clone_model)(model, clone_function=mark)


def trainable_in_int8(layer: Any) -> bool:
    """Whether quantization-aware training takes this kind of layer (batch normalisation: after a convolution)."""
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_registry as registry,
    )

    kinds = (*ANNOTATED, *TRANSFORMED)
    return type(layer).__name__ in kinds or registry.Default8BitQuantizeRegistry().supports(layer)


def prunable(layer: Any) -> bool:
    """Whether pruning takes this kind of layer, be it to leave it alone."""
    from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry

    return hasattr(layer, "get_prunable_weights") or prune_registry.PruneRegistry.supports(layer)
