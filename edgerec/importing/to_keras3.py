"""Save tf_keras models as ``.keras`` files that Keras 3 can open.

Keras 3 cannot read tf_keras configurations, and neither package has a converter.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgerec.errors import ModelError
from edgerec.importing.equivalence import check_same_outputs
from edgerec.importing.layer_allowlist import LAYERS, MODELS, NO_EFFECT
from edgerec.train.backend import keras, reported_as
from edgerec.train.precision import in_float32
from edgerec.utils.atomic import replacing
from edgerec.utils.optional import require

log = logging.getLogger(__name__)


def write_keras3(model: Any, path: Path) -> None:
    """Save a tf_keras model as a ``.keras`` file that Keras 3's ``keras.models.load_model`` can open.

    Raises:
        ModelError: Keras 3 lacks one of the layers, or the outputs differ.
    """
    keras3, model = require("keras"), in_float32(model)
    with reported_as(f"{model.name} cannot be written for Keras 3"):
        config = json.loads(json.dumps(model.get_config()), object_hook=_for_keras3)
        kind = keras3.Sequential if isinstance(model, keras().Sequential) else keras3.Model
        converted = kind.from_config(config)
        _copy_weights(model, converted)
        check_same_outputs(model, converted, f"cannot write {model.name} for Keras 3")
    with replacing(path) as partial:
        converted.save(partial)


def _copy_weights(model: Any, converted: Any) -> None:
    """Copy the weights layer by layer, because Keras 2 and 3 may order a nested model's weights differently."""
    for layer in model.layers:
        if isinstance(layer, keras().Model):
            _copy_weights(layer, converted.get_layer(layer.name))
        else:
            converted.get_layer(layer.name).set_weights(layer.get_weights())


def offer_keras3(model: Any, path: Path) -> None:
    """Save the model with :func:`write_keras3` if Keras 3 supports all of its layers, otherwise log the reason."""
    try:
        write_keras3(model, path)
    except ModelError as error:
        log.info("%s was not written: %s", path.name, error)


def _for_keras3(value: dict[str, Any]) -> dict[str, Any]:
    kind, config = value.get("class_name"), value.get("config")
    if kind in MODELS:
        module = "keras.src.models.functional" if kind == "Functional" else "keras"
        return value | {"module": module, "registered_name": None}
    if "input_layers" in value:  # Keras 3 does not wrap a single input or output in a list
        value = _with_keras3_calls(value)
        ends = {key: value[key][0] for key in ("input_layers", "output_layers") if len(value[key]) == 1}
        return value | ends
    if kind not in LAYERS or not isinstance(config, dict):
        return value
    renamed = {"alpha": "negative_slope"} if kind == "LeakyReLU" else {"batch_input_shape": "batch_shape"}
    known = {"name", "trainable", "dtype"} | inspect.signature(getattr(require("keras").layers, kind)).parameters.keys()
    adapted = {}
    for key, option in config.items():
        key = renamed.get(key, key)
        if key == "rng_type" or (key == "batch_shape" and kind != "InputLayer"):
            # Only random layers use ``rng_type``, and only an InputLayer needs the batch shape.
            continue
        if kind == "BatchNormalization" and key == "axis":
            option = option[0] if isinstance(option, list) else option
        if key in known or not (option in NO_EFFECT or (key, option) == ("groups", 1) or key.endswith("_initializer")):
            adapted[key] = option
    return value | {"config": adapted}


def _with_keras3_calls(functional: dict[str, Any]) -> dict[str, Any]:
    """Convert the node indices of nested models from Keras 2 to Keras 3.

    In Keras 2, the first call of a nested model has the node index 1, because node 0 is the construction of the nested
    model. In Keras 3, it has the node index 0, unless the output of a nested functional model is an output of the whole
    model.
    """
    nested = {layer["name"]: layer["class_name"] for layer in functional["layers"] if layer["class_name"] in MODELS}

    def counted(value: Any, names: Collection[str]) -> Any:
        if not isinstance(value, list):
            return value
        if len(value) >= 3 and isinstance(value[0], str) and value[0] in names and isinstance(value[1], int):
            return [value[0], max(0, value[1] - 1), *value[2:]]
        return [counted(item, names) for item in value]

    layers = [layer | {"inbound_nodes": counted(layer["inbound_nodes"], nested)} for layer in functional["layers"]]
    chains = [name for name, kind in nested.items() if kind == "Sequential"]
    return functional | {"layers": layers, "output_layers": counted(functional["output_layers"], chains)}
