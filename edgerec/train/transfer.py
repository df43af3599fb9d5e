"""Transfer learning: the stages of a training, and other people's networks with a new head."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.contract.recipe import Recipe
from edgerec.errors import ModelError, RecipeError
from edgerec.models import BACKBONE, build
from edgerec.models.imagenet import RANGE
from edgerec.train.foreign import expects_pixels, read_foreign
from edgerec.train.keras import every_layer, freeze_batch_normalization, keras
from edgerec.train.optimizer import learning_rate
from edgerec.train.rebuild import Rebuild, flatten

log = logging.getLogger(__name__)

CLASSES = ("logits", "scores")
# Steps in which the layers join: each is traced anew, which takes seconds.
MOST_GROUPS = 4


@dataclass(frozen=True)
class Stage:
    """Consecutive epochs of a training that share an optimizer and a learning-rate schedule.

    Attributes:
        number: position in the list of stages, as recorded in ``history.csv``.
        first, last: epochs, counted from 0, without ``last``. A stage moves forward if an earlier one ended early.
        part: fraction of the layers before the head that learn, the last ones.
        rate: peak learning rate.
        schedule: as ``train.schedule``.
        share: fraction of ``train.max_hours`` that is used up when the stage should end.
    """

    number: int
    first: int
    last: int
    part: float
    rate: float
    schedule: str
    share: float = 1.0

    @property
    def about(self) -> str:
        """Description for messages."""
        return "the head alone" if not self.part else "all layers" if self.part == 1 else "the head and the last layers"

    def starting_at(self, first: int) -> Stage:
        """Return the same stage, starting at another epoch."""
        return replace(self, first=first, last=first + self.last - self.first)


def stages(recipe: Recipe) -> list[Stage]:
    """Return the stages of a training.

    From random weights there is one. From trained weights the head learns first, then more and more of the layers
    before it, the last ones first and in up to four groups, and finally all layers. ``train.restarts`` adds a stage of
    all layers for each restart.
    """
    train = recipe.train
    ends = [*restarts(recipe), train.epochs]
    found = _first_stages(recipe, ends[0])
    # A recipe can end with the head alone, or with a group of layers at a constant rate; a restart trains all layers.
    rate = train.learning_rate * (recipe.transfer.rate if recipe.model.pretrained else 1.0)
    found += [Stage(0, first, last, 1.0, rate, train.schedule) for first, last in itertools.pairwise(ends)]
    return [replace(stage, number=number, share=stage.last / train.epochs) for number, stage in enumerate(found)]


def restarts(recipe: Recipe) -> list[int]:
    """Return the epochs before which the learning-rate schedule starts again.

    Raises:
        RecipeError: ``train.restarts`` is not a list of increasing epochs below ``train.epochs``.
    """
    text, epochs = recipe.train.restarts, recipe.train.epochs
    try:
        found = [int(number) for number in text.split(",")] if text.strip() else []
    except ValueError:
        found = [0]
    if any(first >= second for first, second in itertools.pairwise([0, *found, epochs])):
        raise RecipeError(
            f"train.restarts is {text!r}, expected increasing epochs below train.epochs ({epochs}): 10, 20"
        )
    return found


def _first_stages(recipe: Recipe, epochs: int) -> list[Stage]:
    """The stages before the first restart; their numbers and shares are set later."""
    train, transfer = recipe.train, recipe.transfer
    if not recipe.model.pretrained:
        return [Stage(0, 0, epochs, 1.0, train.learning_rate, train.schedule)]
    alone = min(epochs, round(epochs * transfer.frozen))
    joining = min(epochs - alone, round(epochs * transfer.unfreeze))
    rate = train.learning_rate * transfer.rate
    found = []
    if alone:
        found.append(Stage(0, 0, alone, 0.0, train.learning_rate, "cosine" if alone < epochs else train.schedule))
    groups = min(joining, MOST_GROUPS)
    for number in range(groups):
        first, last = (alone + joining * n // groups for n in (number, number + 1))
        found.append(Stage(0, first, last, (number + 1) / (groups + 1), rate, "constant"))
    if alone + joining < epochs:
        found.append(Stage(0, alone + joining, epochs, 1.0, rate, train.schedule))
    return found


def stage_rate(recipe: Recipe, stage: Stage, steps: int) -> Any:
    """Return the learning rate of a stage of ``steps`` per epoch: a number or a schedule."""
    return learning_rate(
        stage.rate, stage.schedule, steps * (stage.last - stage.first), round(steps * recipe.train.warmup_epochs)
    )


def hold(model: Any, recipe: Recipe, stage: Stage) -> None:
    """Let the layers of a stage learn, and freeze all others; layers of nested models count like all others.

    Batch normalization before the head keeps its statistics, scale and offset, unless ``transfer.freeze_bn`` is off:
    the statistics of a few images are worse than those of the data that the weights come from.
    """
    if not recipe.model.pretrained:
        return
    release(model)
    body = [layer for layer in _leaves(model) if layer.weights and layer.name not in CLASSES]
    learning = round(len(body) * stage.part)
    for number, layer in enumerate(body):
        layer.trainable = number >= len(body) - learning and layer.name != RANGE
    if recipe.transfer.freeze_bn:
        freeze_batch_normalization(model)
    log.info("epoch %d: %d of %d layers before the head learn", stage.first + 1, learning, len(body))


def release(model: Any) -> None:
    """Let every layer learn again except the fixed input range, as fine-tuning expects."""
    for layer in model.layers:
        layer.trainable = True
    for layer in _leaves(model):
        layer.trainable = layer.name != RANGE


def _leaves(model: Any) -> list[Any]:
    """The layers of a model that are not models themselves."""
    return [layer for layer in every_layer(model) if not hasattr(layer, "layers")]


def network(recipe: Recipe, classes: int) -> Any:
    """The untrained model of a complete recipe: its architecture, or a file's network with new classes."""
    if recipe.model.arch == BACKBONE:
        return with_new_classes(checked_source(recipe), classes, recipe)
    return build(keras(), recipe.model, recipe.preprocess.shape, classes, recipe.normalise)


def with_new_classes(path: Path, classes: int, recipe: Recipe) -> Any:
    """Return a Keras file's network with a new head of ``classes`` scores instead of its last weighted layer.

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
    x = features(model)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="features")(x)  # of size 1×1 it is a reshape
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
    if not recipe.model.pretrained or recipe.model.weights == "imagenet":
        raise RecipeError(
            f"model.arch is {BACKBONE!r} and model.weights {recipe.model.weights!r}: expected a whole .keras or .h5 "
            "model to take the network from, as --weights vww_96.h5"
        )
    return Path(recipe.model.weights)


def features(model: Any) -> Any:
    """Return the tensor that a classifier's last weighted layer takes: its features, rank 2 or 4.

    The last weighted layer is a dense layer, or a convolution that computes the scores, which are then reshaped or
    averaged (MobileNet V1 and V3, SqueezeNet). Without such a layer the model's output is the features, as with
    ``include_top=False``.

    Raises:
        ModelError: there is a softmax or sigmoid at the end, but no such layer before it.
    """
    tensor, scores = model.outputs[0], False
    while True:
        layer, number, _ = tensor._keras_history
        kind = type(layer).__name__
        scores = scores or _gives_scores(layer)
        if kind == "Dense" or (kind == "Conv2D" and _is_head(layer, tensor, model, scores)):
            return layer.get_input_at(number)
        taken = layer.get_input_at(number)
        if kind not in (_BEHIND_HEAD | _BEFORE_SCORES if scores else _BEHIND_HEAD) or isinstance(taken, (list, dict)):
            break
        tensor = taken
    if scores:
        raise ModelError(
            f"cannot find the layer that computes the scores of {model.name}: there is a {kind} ({layer.name}) before "
            "the softmax or sigmoid, expected a Dense or Conv2D layer; save the model without its head"
        )
    return model.outputs[0]


# Layers that may follow the head, and others that may stand between the head and a softmax or sigmoid.
_BEHIND_HEAD = {"Activation", "Softmax", "Dropout", "Reshape", "Flatten", "Identity", "TFOpLambda"} | {
    f"Global{kind}Pooling2D" for kind in ("Average", "Max")
}
_BEFORE_SCORES = {"BatchNormalization", "ReLU", "Rescaling", "AveragePooling2D", "MaxPooling2D"}


def _gives_scores(layer: Any) -> bool:
    """Whether the layer ends in a softmax or sigmoid."""
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    name = f"{type(layer).__name__} {activation} {getattr(layer, 'symbol', '')}".lower()
    return "softmax" in name or "sigmoid" in name


def _is_head(layer: Any, tensor: Any, model: Any, scores: bool) -> bool:
    """Whether a convolution computes a classifier's scores, and not features."""
    output = model.outputs[0].shape
    if len(output) != 2 or output[1] != tensor.shape[-1]:
        return False
    return scores or tuple(tensor.shape[1:3]) == (1, 1)
