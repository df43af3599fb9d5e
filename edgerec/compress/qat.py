"""Quantization-aware training (arXiv:1712.05877), by tensorflow-model-optimization."""

from __future__ import annotations

from typing import Any

from edgerec.compress.adapt import adapt
from edgerec.compress.annotate import annotate
from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.contract.tensors import Normalise
from edgerec.errors import ModelError
from edgerec.optional import require
from edgerec.train.keras import first_line


def quantization_aware(model: Any, normalise: Normalise, tune: FineTune, *, preserve_sparsity: bool) -> Any:
    """The model with int8 rounding simulated in every layer, fine-tuned.

    Args:
        model: a float model, pruned or not; it is adapted first (``adapt.py``), and stays as it is.
        normalise: fixes the input's range, so that pixels pass through.
        tune: data and schedule.
        preserve_sparsity: keep zero weights at zero.

    Raises:
        ModelError: a layer that cannot be quantized, by its name.
    """
    aware = rounded(model, normalise, preserve_sparsity=preserve_sparsity)
    fine_tune(aware, tune, "quantization-aware training")
    return aware


def rounded(model: Any, normalise: Normalise, *, preserve_sparsity: bool) -> Any:
    """A copy of the model, adapted, with int8 rounding simulated in every layer; not trained yet."""
    tfmot = require("tensorflow_model_optimization")
    quantization = tfmot.quantization.keras
    model = adapt(model, "pqat" if preserve_sparsity else "qat").model
    scheme = [tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()] if preserve_sparsity else []
    try:
        with quantization.quantize_scope():
            aware = quantization.quantize_apply(annotate(model), *scheme)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"quantization-aware training refuses {model.name}: {first_line(error)}; use --method ptq"
        ) from None
    _fix_input_range(aware, normalise)
    return aware


def _fix_input_range(aware: Any, normalise: Normalise) -> None:
    """Give the input the range of all pixel values, instead of learning about that one from the data.

    Its scale is then 1/std and its zero point the mean: quantize(normalise(p)) == p.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
    from tensorflow_model_optimization.python.core.quantization.keras.quantizers import FixedQuantizer

    low, high = (0 - normalise.mean) / normalise.std, (255 - normalise.mean) / normalise.std
    for layer in aware.layers:
        if isinstance(layer, QuantizeLayer):
            layer.quantizer = FixedQuantizer(num_bits=8, init_min=low, init_max=high, narrow_range=False)
