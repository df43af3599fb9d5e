"""Transfer learning: which layers learn when, and other people's networks with new classes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.recipe import Recipe
from edgerec.errors import ModelError, RecipeError
from edgerec.models import BACKBONE, build
from edgerec.models.imagenet import RANGE
from edgerec.train.foreign import expects_pixels, read_foreign
from edgerec.train.keras import keras
from edgerec.train.optimizer import cosine, learning_rate
from edgerec.train.rebuild import Rebuild, flatten

log = logging.getLogger(__name__)

CLASSES = ("logits", "scores")
# Steps in which the layers join: each is traced anew, which takes seconds.
MOST_GROUPS = 4


@dataclass(frozen=True)
class Stage:
    """Some epochs of a training, with an optimizer of their own.

    Attributes:
        first, last: epochs, counted from 0; without ``last``.
        part: of the layers before the classes that learn, the last ones.
        rate: the highest learning rate.
        falls: whether it falls to zero.
    """

    first: int
    last: int
    part: float
    rate: float
    falls: bool


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of a training: one, or with weights to start from the classes first, then the layers from behind.

    While layers join, in up to four groups, the rate stays; with all of them it falls to zero.
    """
    train, transfer = recipe.train, recipe.transfer
    if recipe.model.weights == "none":
        return [Stage(0, train.epochs, 1.0, train.learning_rate, train.schedule == "cosine")]
    if train.schedule == "plateau":
        raise RecipeError("train.schedule is 'plateau', expected cosine or constant where model.weights are given")
    alone = min(train.epochs, round(train.epochs * transfer.frozen))
    joining = min(train.epochs - alone, round(train.epochs * transfer.unfreeze))
    rate = train.learning_rate * transfer.rate
    found = [Stage(0, alone, 0.0, train.learning_rate, True)] if alone else []
    groups = min(joining, MOST_GROUPS)
    for number in range(groups):
        first, last = (alone + joining * n // groups for n in (number, number + 1))
        found.append(Stage(first, last, (number + 1) / (groups + 1), rate, False))
    if alone + joining < train.epochs:
        found.append(Stage(alone + joining, train.epochs, 1.0, rate, train.schedule == "cosine"))
    return found


def stage_rate(recipe: Recipe, stage: Stage, steps: int) -> Any:
    """The learning rate of a stage of ``steps`` an epoch: a number or a schedule."""
    if recipe.model.weights == "none":
        return learning_rate(recipe.train, steps)
    return cosine(stage.rate, steps * (stage.last - stage.first)) if stage.falls else stage.rate


def hold(model: Any, recipe: Recipe, stage: Stage) -> None:
    """Let the layers of a stage learn, and no others.

    Batch normalisation before the classes keeps its statistics and answers as on a device, unless
    ``transfer.freeze_bn`` is off: a few pictures' statistics are worse than those of the weights' own data.
    """
    if recipe.model.weights == "none":
        return
    release(model)
    body = [layer for layer in model.layers if layer.weights and layer.name not in CLASSES]
    learning = round(len(body) * stage.part)
    for number, layer in enumerate(body):
        still = recipe.transfer.freeze_bn and type(layer).__name__ == "BatchNormalization"
        layer.trainable = number >= len(body) - learning and not still and layer.name != RANGE
    log.info("epoch %d: %d of %d layers before the classes learn", stage.first + 1, learning, len(body))


def release(model: Any) -> None:
    """Let every layer learn again that is not fixed, as fine-tuning expects."""
    for layer in model.layers:
        layer.trainable = layer.name != RANGE


def network(recipe: Recipe, classes: int) -> Any:
    """The untrained model of a complete recipe: its architecture, or a file's network with new classes."""
    if recipe.model.arch == BACKBONE:
        return with_new_classes(checked_source(recipe), classes, recipe)
    return build(keras(), recipe.model, recipe.preprocess.shape, classes, recipe.normalise)


def with_new_classes(path: Path, classes: int, recipe: Recipe) -> Any:
    """A Keras file's network, without its last dense layer, before ``classes`` new ones.

    Raises:
        ModelError: it is no network of one picture in and one row of numbers out, or takes other pictures.
    """
    model = read_foreign(path)
    channels, dropout = recipe.data.channels, recipe.model.dropout
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or len(model.outputs) != 1 or None in shape[1:]:
        raise ModelError(
            f"{path} takes {shape}, expected one picture of a fixed size: (batch, height, width, channels)"
        )
    if shape[3] != channels:
        raise ModelError(f"{path} takes pictures of {shape[3]} channels, the data has {channels}: set data.channels")
    if expects_pixels(model) and recipe.data.normalise != "pixels":
        raise ModelError(f"{path} scales pixels 0 to 255 itself: give it those with --set data.normalise=pixels")
    layers, model = keras().layers, Rebuild(flatten).run(model)
    x = _features(model)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(dropout)(x) if dropout else x
    x = layers.Dense(classes, name=CLASSES[0], dtype="float32")(x)
    scores = layers.Activation("softmax", name=CLASSES[1], dtype="float32")(x)
    try:
        return keras().Model(model.inputs, scores, name=BACKBONE)
    except ValueError as error:
        raise ModelError(
            f"{path} cannot get new classes ({error}): rename its layers {' and '.join(CLASSES)}"
        ) from None


def input_size_px(path: Path) -> int:
    """The side of the pictures that a Keras file's network takes."""
    shape = read_foreign(path).input_shape
    return shape[1] if isinstance(shape, tuple) and len(shape) == 4 and shape[1] else 0


def checked_source(recipe: Recipe) -> Path:
    """The file of a recipe whose network is a file's; raises :class:`RecipeError` where it names none."""
    if recipe.model.weights in ("none", "imagenet"):
        raise RecipeError(
            f"model.arch is {BACKBONE!r} and model.weights {recipe.model.weights!r}: expected a whole .keras or .h5 "
            "model to take the network from, as --weights vww_96.h5"
        )
    return Path(recipe.model.weights)


def _features(model: Any) -> Any:
    """What the last dense layer of a classifier takes; the output where there is none."""
    tensor = model.outputs[0]
    while True:
        layer = tensor._keras_history.layer
        if type(layer).__name__ == "Dense":
            return layer.input
        if type(layer).__name__ not in ("Activation", "Softmax", "Dropout", "Reshape", "Flatten", "Identity"):
            return model.outputs[0]
        tensor = layer.input
