"""Transfer learning: freeze the layers that a stage does not train, and give pretrained networks a new head."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from edgerec.errors import ModelError, RecipeError
from edgerec.importing.graph_rewriter import Rebuild, flatten
from edgerec.importing.third_party_keras import expects_pixels, read_third_party
from edgerec.models import BACKBONE, build
from edgerec.models.imagenet import RANGE
from edgerec.recipe import Recipe
from edgerec.train.backend import every_layer, freeze_batch_normalization, keras
from edgerec.train.stages import TrainingStage

log = logging.getLogger(__name__)

# Names of the head's dense layer and softmax layer.
HEAD = ("logits", "scores")


def freeze_for_stage(model: Any, recipe: Recipe, stage: TrainingStage) -> None:
    """Unfreeze the layers that a stage trains, and freeze all others, including nested models' layers.

    If ``transfer.freeze_bn`` is set, batch normalization before the head keeps its statistics, scale and offset,
    because statistics from few images are less accurate than those from the pretraining data.
    """
    if not recipe.model.pretrained:
        return
    unfreeze(model)
    body = [layer for layer in _leaf_layers(model) if layer.weights and layer.name not in HEAD]
    trainable = round(len(body) * stage.trainable_fraction)
    for number, layer in enumerate(body):
        layer.trainable = number >= len(body) - trainable and layer.name != RANGE
    if recipe.transfer.freeze_bn:
        freeze_batch_normalization(model)
    log.info("epoch %d: training %d of %d layers before the head", stage.first + 1, trainable, len(body))


def unfreeze(model: Any) -> None:
    """Unfreeze all layers except the fixed input normalization, in preparation for fine-tuning."""
    for layer in model.layers:
        layer.trainable = True
    for layer in _leaf_layers(model):
        layer.trainable = layer.name != RANGE


def _leaf_layers(model: Any) -> list[Any]:
    return [layer for layer in every_layer(model) if not hasattr(layer, "layers")]


def network(recipe: Recipe, classes: int) -> Any:
    """Build a recipe's model, or load its network from a file and add a new head."""
    if recipe.model.arch == BACKBONE:
        return with_new_head(backbone_file(recipe), classes, recipe)
    return build(keras(), recipe.model, recipe.preprocess.shape, classes, recipe.normalize)


def with_new_head(path: Path, classes: int, recipe: Recipe) -> Any:
    """Load the network in a Keras file, and replace its classification layer with a new head for ``classes`` classes.

    Raises:
        ModelError: the network does not have one image input and one output vector, or its input does not match the
            size, channels or normalization in the recipe.
    """
    model = read_third_party(path)
    channels, dropout = recipe.data.channels, recipe.model.dropout
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or len(model.outputs) != 1 or None in shape[1:]:
        raise ModelError(
            f"Cannot use the network in {path}: its input shape is {shape}. Expected one input of fixed size with the "
            "shape (batch, height, width, channels), and one output"
        )
    if shape[3] != channels:
        raise ModelError(
            f"The network in {path} requires images with {shape[3]} channels, but the data has {channels}: set "
            f"data.channels to {shape[3]}"
        )
    if expects_pixels(model) and recipe.data.normalize != "pixels":
        raise ModelError(
            f"The network in {path} already normalizes pixels from 0 to 255: disable the normalization with --set "
            "data.normalize=pixels"
        )
    layers, model = keras().layers, Rebuild(flatten).run(model)
    x = features(model)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(dropout)(x) if dropout else x
    x = layers.Dense(classes, name=HEAD[0], dtype="float32")(x)
    scores = layers.Activation("softmax", name=HEAD[1], dtype="float32")(x)
    try:
        return keras().Model(model.inputs, scores, name=BACKBONE)
    except ValueError as error:
        raise ModelError(
            f"Cannot add a new head to the network in {path} ({error}): rename its layers {' and '.join(HEAD)}"
        ) from None


def input_size_px(path: Path) -> int:
    """Return the input height of the network in a Keras file, in pixels, or 0 if it is not fixed."""
    shape = read_third_party(path).input_shape
    return shape[1] if isinstance(shape, tuple) and len(shape) == 4 and shape[1] else 0


def backbone_file(recipe: Recipe) -> Path:
    """Return the path of the Keras file with the recipe's network, or raise :class:`RecipeError`."""
    if not recipe.model.pretrained or recipe.model.weights == "imagenet":
        raise RecipeError(
            f"model.arch is {BACKBONE!r}, so model.weights must be the .keras or .h5 file of a complete model, such as "
            f"model.weights=vww_96.h5, but it is {recipe.model.weights!r}"
        )
    return Path(recipe.model.weights)


def features(model: Any) -> Any:
    """Return the input tensor (rank 2 or 4) of a classifier's last layer with weights.

    The last layer with weights is a dense layer or a convolution that computes the scores. MobileNet V1 and V3 and
    SqueezeNet reshape or average the output of such a convolution. Without such a layer, as in a Keras application with
    ``include_top=False``, the model's output tensor contains the features.

    Raises:
        ModelError: the model ends in a softmax or sigmoid, but the layer that computes the scores is not found.
    """
    tensor, scores = model.outputs[0], False
    while True:
        layer, number, _ = tensor._keras_history
        kind = type(layer).__name__
        scores = scores or _applies_softmax(layer)
        if kind == "Dense" or (kind == "Conv2D" and _is_head(layer, tensor, model, scores)):
            return layer.get_input_at(number)
        source = layer.get_input_at(number)
        if kind not in (_AFTER_HEAD | _BEFORE_SCORES if scores else _AFTER_HEAD) or isinstance(source, (list, dict)):
            break
        tensor = source
    if scores:
        raise ModelError(
            f"Cannot find the classification layer of {model.name}: expected a Dense or Conv2D layer before the "
            f"softmax or sigmoid, but found {layer.name!r} ({kind}). Save the model without its head"
        )
    return model.outputs[0]


# Layer types that may follow the classification layer.
_AFTER_HEAD = {"Activation", "Softmax", "Dropout", "Reshape", "Flatten", "Identity", "TFOpLambda"} | {
    f"Global{kind}Pooling2D" for kind in ("Average", "Max")
}
# Layer types that may be between the classification layer and its softmax or sigmoid.
_BEFORE_SCORES = {"BatchNormalization", "ReLU", "Rescaling", "AveragePooling2D", "MaxPooling2D"}


def _applies_softmax(layer: Any) -> bool:
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    name = f"{type(layer).__name__} {activation} {getattr(layer, 'symbol', '')}".lower()
    return "softmax" in name or "sigmoid" in name


def _is_head(layer: Any, tensor: Any, model: Any, scores: bool) -> bool:
    """Return whether a convolution computes class scores rather than features."""
    output = model.outputs[0].shape
    if len(output) != 2 or output[1] != tensor.shape[-1]:
        return False
    return scores or tuple(tensor.shape[1:3]) == (1, 1)
