"""What a model must be to be an image classifier of edgerec's, and making one of it that nearly is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.train.keras import keras
from edgerec.train.saved_model import SavedModel, gives_scores

log = logging.getLogger(__name__)


def check_classifier(model: Any, where: str) -> None:
    """Refuse what is no image classifier: raises :class:`ModelError` with the reason.

    Expected are one input of a fixed square size with 1 or 3 channels, one row of outputs, and finite weights.
    """
    shape, answer = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if shape is None:
        raise ModelError(f"{where} does not know its input size: give it an Input(shape) and save it again")
    for what, value in (("inputs", shape), ("outputs", answer)):
        if isinstance(value, list | dict):
            raise ModelError(f"{where} has {len(value)} {what}, expected one: a picture in, a row of scores out")
    if len(shape) != 4 or shape[3] not in (None, 1, 3):
        raise ModelError(f"{where} takes {shape}, expected pictures (batch, height, width, 1 or 3)")
    if None in shape[1:]:
        raise ModelError(
            f"{where} takes {shape}: its size is dynamic; build it with a fixed one, as Input((96, 96, 3))"
        )
    if shape[1] != shape[2]:
        raise ModelError(f"{where} takes {shape[2]}×{shape[1]} pixels, expected a square: build it with one")
    if answer is None or len(answer) != 2 or answer[1] is None:
        raise ModelError(f"{where} gives {answer}, expected (batch, classes): it is no image classifier")
    if isinstance(model, SavedModel) and answer[1] == 1:
        raise ModelError(f"{where} gives one number: give the Keras model itself as .keras, which becomes two classes")
    for name, weights in _weights(model):
        if not np.isfinite(weights).all():
            raise ModelError(f"{where} has weights that are NaN or infinite in {name!r}: train it again")


def with_scores(model: Any, where: str) -> Any:
    """A tf_keras classifier whose outputs are scores in [0, 1], one for each class.

    One output of a dense layer, the second of two classes' score (with or without sigmoid), becomes two: the softmax
    of (0, z) is (1 − sigmoid(z), sigmoid(z)). Logits get a softmax.

    Raises:
        ModelError: a single output in another place.
    """
    layer = _last(model)
    if model.output_shape[1] == 1:
        log.info("%s has one output: it becomes the scores of two classes, the second of which it meant", where)
        return _two_classes(model, layer, where)
    if gives_scores(model):
        return model
    if _activation(layer) == "sigmoid":
        log.warning("%s scores its classes independently (sigmoid): the one with the highest score is taken", where)
        return model
    log.info("%s gives logits: a softmax is added", where)
    scores = keras().layers.Activation("softmax", name=_free(model, "scores"))(model.output)
    return keras().Model(model.inputs, scores, name=model.name)


def _last(model: Any) -> Any:
    """The layer that makes the model's output, inside nested models too."""
    layer = model.outputs[0]._keras_history.layer
    return _last(layer) if hasattr(layer, "layers") else layer


def _activation(layer: Any) -> str:
    return str(getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__.lower()))


def _two_classes(model: Any, layer: Any, where: str) -> Any:
    activation = _activation(layer)
    if type(layer).__name__ == "Activation" and activation == "sigmoid":
        layer = layer.input._keras_history.layer
    if type(layer).__name__ != "Dense" or activation not in ("sigmoid", "linear") or layer not in model.layers:
        raise ModelError(f"{where} has one output, from {layer.name!r}: end it in Dense(2) and a softmax")
    kernel, *bias = layer.get_weights()
    scores = keras().layers.Dense(2, "softmax", use_bias=bool(bias), name=_free(model, "scores"))
    built = keras().Model(model.inputs, scores(layer.input), name=model.name)
    scores.set_weights([np.concatenate([0 * weights, weights], axis=-1) for weights in (kernel, *bias)])
    return built


def _free(model: Any, name: str) -> str:
    """``name``, or with underscores where a layer has it already."""
    taken = {layer.name for layer in model.layers}
    while name in taken:
        name += "_"
    return name


def _weights(model: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(model, SavedModel):
        yield from zip((v.name for v in model.variables), model.get_weights(), strict=True)
    else:
        yield from ((variable.name, variable.numpy()) for variable in model.weights)
