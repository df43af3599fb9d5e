"""What tensorflow-model-optimization knows, and a rounding for what int8 runs and it does not know."""

from __future__ import annotations

from typing import Any

from edgerec.importing.tfmot_support import ANNOTATED
from edgerec.train.backend import keras, without_autograph
from edgerec.utils.optional import require


def annotate(model: Any) -> Any:
    """``model`` as ``quantize_apply`` wants it: every layer marked, with a rounding where tfmot has none of its own."""
    tfmot = require("tensorflow_model_optimization")
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_configs as configs,
    )

    def mark(layer: Any) -> Any:
        own = configs.Default8BitOutputQuantizeConfig() if type(layer).__name__ in ANNOTATED else None
        return tfmot.quantization.keras.quantize_annotate_layer(layer, own)

    return without_autograph(keras().models.clone_model)(model, clone_function=mark)
