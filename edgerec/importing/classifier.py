"""Check imported image classifiers, and add layers for normalization and class scores."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from edgerec.contract.tensors import AnyNormalize, input_convolution
from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import Rebuild, calls, flatten
from edgerec.importing.saved_model import SavedModel, outputs_scores
from edgerec.importing.unsupported import check_finite
from edgerec.train.backend import keras

log = logging.getLogger(__name__)


def check_classifier(model: Any, where: str) -> None:
    """Check that a model is an image classifier.

    The model must have one input of a fixed square size with 1 or 3 channels, one output vector, and finite weights.

    Raises:
        ModelError: the first condition that does not hold.
    """
    shape, output_shape = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if shape is None:
        raise ModelError(f"{where} has no input size: add an Input(shape) and save the model again")
    for what, value in (("inputs", shape), ("outputs", output_shape)):
        if isinstance(value, list | dict):
            raise ModelError(
                f"{where} has {len(value)} {what}, but an image classifier must have one input and one output"
            )
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (None, 1, 3):
        raise ModelError(
            f"{where} has channels-first input shape {shape}, expected (batch, height, width, channels): add "
            "Permute((3, 1, 2)) as the first layer, or use the Keras model (.keras)"
        )
    if len(shape) != 4 or shape[3] not in (None, 1, 3):
        raise ModelError(f"{where} has input shape {shape}, expected (batch, height, width, 1 or 3)")
    if None in shape[1:]:
        raise ModelError(
            f"{where} has the dynamic input shape {shape}: build the model with a fixed size, e.g. Input((96, 96, 3))"
        )
    if shape[1] != shape[2]:
        raise ModelError(
            f"{where} has an input of {shape[2]}×{shape[1]} pixels, but only square images are supported: build the "
            "model with a square input"
        )
    if output_shape is None or len(output_shape) != 2 or output_shape[1] is None:
        raise ModelError(
            f"{where} is not an image classifier: its output shape is {output_shape}, expected (batch, classes)"
        )
    if isinstance(model, SavedModel) and output_shape[1] == 1:
        raise ModelError(
            f"{where} is a SavedModel with a single output, which edgerec does not support: use the same model's "
            ".keras file, because edgerec can add the first class's output to a Keras model"
        )
    check_finite(model, where)


def with_scores(model: Any, where: str) -> Any:
    """Return a tf_keras classifier that outputs one score in [0, 1] for each class.

    A model that outputs logits gets a softmax. The single output z of a binary classifier, which is the score of the
    second class with or without a sigmoid, becomes two outputs: softmax(0, z) = (1 - sigmoid(z), sigmoid(z)).

    Raises:
        ModelError: the model has a single output with another activation.
    """
    if model.output_shape[1] == 1:
        model = _two_classes(model, where)
        log.info(
            "%s has one output, the score of the second of two classes: adding the score of the first class", where
        )
        return model
    if outputs_scores(model):
        return model
    if _activation(_output_layer(model)) == "sigmoid":
        log.warning(
            "%s has independent class scores (sigmoid): the class with the highest score is the prediction", where
        )
        return model
    log.info("%s outputs logits: adding a softmax", where)
    scores = keras().layers.Activation("softmax", name=_unused_name(model, "scores"))(model.output)
    return keras().Model(model.inputs, scores, name=model.name)


def with_input_normalize(model: Any, normalize: AnyNormalize) -> Any:
    """Return the model with its normalization as the first layer, so that it accepts RGB pixels from 0 to 255.

    The layer is a fixed 1x1 convolution. It is depthwise if the channels keep their order.

    Args:
        model: a tf_keras model or a :class:`SavedModel`.
        normalize: the normalization that the model expects.

    Raises:
        ModelError: the model is grayscale, but the normalization has one scale and offset per channel.
    """
    if isinstance(model, SavedModel):
        model.normalize(normalize)
        return model
    channels, layers = model.input_shape[-1], keras().layers
    kernel, bias = input_convolution(normalize, channels)
    rebuild = Rebuild(flatten)
    inputs = keras().Input(model.input_shape[1:], name=rebuild.name("rgb_pixels"))
    name = rebuild.name("normalization")
    if np.count_nonzero(kernel - np.diag(np.diag(kernel))):
        layer, weights = layers.Conv2D(channels, 1, trainable=False, name=name), kernel[None, None]
    else:
        layer = layers.DepthwiseConv2D(1, trainable=False, name=name)
        weights = np.diag(kernel).reshape(1, 1, channels, 1)
    built = rebuild.run(model, [inputs], [layer(inputs)])
    layer.set_weights([weights, bias])
    return built


def _output_layer(model: Any) -> Any:
    layer = model.outputs[0]._keras_history.layer
    return _output_layer(layer) if hasattr(layer, "layers") else layer


def _activation(layer: Any) -> str:
    return str(getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__.lower()))


# Layers that do not change their input values during inference.
_PASSING = ("ActivityRegularization", "Dropout", "Flatten", "Identity", "Reshape")


def _two_classes(model: Any, where: str) -> Any:
    """Flatten nested models, then replace a binary classifier's single output with two class scores."""
    if any(isinstance(node.layer, keras().Model) for node in calls(model)):
        model = Rebuild(flatten).run(model)
    layer = _output_layer(model)
    while type(layer).__name__ in _PASSING or (type(layer).__name__ == "Activation" and _activation(layer) == "linear"):
        layer = layer.input._keras_history.layer
    activation = _activation(layer)
    if type(layer).__name__ == "Activation" and activation == "sigmoid":
        before = layer.input._keras_history.layer
        layer = before if type(before).__name__ == "Dense" and _activation(before) == "linear" else layer
    known = hasattr(layer, "activation")
    if (known and activation not in ("sigmoid", "linear")) or type(layer).__name__ in ("ReLU", "Softmax", "LeakyReLU"):
        raise ModelError(
            f"{where} has a single output with activation {activation}, from layer {layer.name!r}: a binary classifier "
            "must end with Dense(1, 'sigmoid'), or with Dense(2) and a softmax"
        )
    layers, name = keras().layers, _unused_name(model, "scores")
    if type(layer).__name__ == "Dense" and len(layer.input.shape) == 2:
        kernel, *bias = layer.get_weights()
        scores = layers.Dense(2, "softmax", use_bias=bool(bias), name=name)
        built = keras().Model(model.inputs, scores(layer.input), name=model.name)
        scores.set_weights([np.concatenate([0 * weights, weights], axis=-1) for weights in (kernel, *bias)])
    elif activation == "sigmoid":
        scores = layers.Dense(2, name=name)
        built = keras().Model(model.inputs, scores(model.output), name=model.name)
        scores.set_weights([np.array([[-1.0, 1.0]]), np.array([1.0, 0.0])])
    else:
        scores = layers.Dense(2, "softmax", use_bias=False, name=name)
        built = keras().Model(model.inputs, scores(model.output), name=model.name)
        scores.set_weights([np.array([[0.0, 1.0]])])
    return built


def _unused_name(model: Any, name: str) -> str:
    names = {layer.name for layer in model.layers}
    while name in names:
        name += "_"
    return name
