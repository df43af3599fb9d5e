"""Quantization settings for layers that tensorflow-model-optimization does not know, but int8 kernels support."""

from __future__ import annotations

from typing import Any

from edgerec.importing.tfmot_support import ANNOTATED
from edgerec.train.backend import keras, without_autograph
from edgerec.utils.optional import require


def annotate(model: Any) -> Any:
    """Annotate every layer of a model for ``quantize_apply``.

    Layers that tfmot has no quantization settings for get fake quantization of their outputs.
    """
    tfmot = require("tensorflow_model_optimization")
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_configs as configs,
    )

    def annotated(layer: Any) -> Any:
        config = configs.Default8BitOutputQuantizeConfig() if type(layer).__name__ in ANNOTATED else None
        return tfmot.quantization.keras.quantize_annotate_layer(layer, config)

    return without_autograph(keras().models.clone_model)(model, clone_function=annotated)
