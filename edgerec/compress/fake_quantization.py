"""Insert int8 fake quantization into all layers of a model, using tensorflow-model-optimization."""

from __future__ import annotations

from typing import Any

from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import with_layers
from edgerec.importing.unsupported import ANNOTATED
from edgerec.train.backend import cause, keras, without_autograph
from edgerec.utils.optional import require


def with_fake_quantization(
    model: Any, normalize: Normalize, *, pruned: bool = False, clustered: bool = False, weight_bits: int = 8
) -> Any:
    """Return an untrained copy of the model with int8 fake quantization in every layer."""
    tfmot = require("tensorflow_model_optimization")
    quantization, combine = tfmot.quantization.keras, tfmot.experimental.combine
    scheme: tuple[Any, ...] = ()
    if clustered:
        scheme = (combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=pruned),)
    elif pruned:
        scheme = (combine.Default8BitPrunePreserveQuantizeScheme(),)
    try:
        with quantization.quantize_scope():
            aware = without_autograph(quantization.quantize_apply)(_annotated(model), *scheme)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"quantization-aware training does not support {model.name}: {cause(error)}; use --method ptq"
        ) from None
    _fix_input_range(aware, normalize)
    if not clustered:
        _limit_weight_bits(aware, weight_bits)
    for wrapper in aware.layers:
        layer = getattr(wrapper, "layer", wrapper)
        if isinstance(layer, keras().layers.BatchNormalization):
            # Only the batch normalization statistics are frozen, because the wrapper still trains the scale and offset.
            layer.trainable = False
    return aware


def _annotated(model: Any) -> Any:
    """Annotate all layers of a model for quantization-aware training.

    The outputs of layers that int8 kernels support, but tensorflow-model-optimization does not, get fake quantization.
    """
    annotate_layer = require("tensorflow_model_optimization").quantization.keras.quantize_annotate_layer
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_configs as configs,
    )

    def annotated(layer: Any) -> Any:
        config = configs.Default8BitOutputQuantizeConfig() if type(layer).__name__ in ANNOTATED else None
        return annotate_layer(layer, config)

    return with_layers(model, annotated)


def _limit_weight_bits(aware: Any, count: int) -> None:
    """Round weights to ``2**count - 1`` evenly spaced values, which the converter stores as int8."""
    for wrapper in aware.layers:
        for _, quantizer, _ in getattr(wrapper, "_weight_vars", ()):
            quantizer.num_bits = count


def _fix_input_range(aware: Any, normalize: Normalize) -> None:
    """Set the quantization range of the input to the range of normalized pixel values.

    The scale is then 1/std and the zero point is the mean, so that ``quantize(normalize(p)) == p`` for pixel values p.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
    from tensorflow_model_optimization.python.core.quantization.keras.quantizers import FixedQuantizer

    low, high = (0 - normalize.mean) / normalize.std, (255 - normalize.mean) / normalize.std
    for layer in aware.layers:
        if isinstance(layer, QuantizeLayer):
            layer.quantizer = FixedQuantizer(num_bits=8, init_min=low, init_max=high, narrow_range=False)
