"""Divide a training run into stages, for transfer learning and learning-rate restarts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from edgerec.errors import RecipeError
from edgerec.recipe import Recipe
from edgerec.train.optimizer import learning_rate

# Maximum number of layer groups to unfreeze gradually.
# Each layer group delays training by seconds, because TensorFlow traces the training step again.
MAX_GROUPS = 4


@dataclass(frozen=True)
class TrainingStage:
    """Consecutive training epochs that share an optimizer and a learning-rate schedule.

    Attributes:
        number: position in the list of stages, as recorded in ``history.csv``.
        first, last: range of epochs, counted from 0; ``last`` is exclusive. If an earlier stage ends early, the
            following stages start earlier than planned.
        trainable_fraction: fraction of the layers before the head to train, counted from the head.
        rate: peak learning rate.
        schedule: learning-rate schedule, as in ``train.schedule``.
        time_fraction: fraction of ``train.max_hours`` after which the stage must end.
    """

    number: int
    first: int
    last: int
    trainable_fraction: float
    rate: float
    schedule: str
    time_fraction: float = 1.0

    @property
    def description(self) -> str:
        """Description of the layers that the stage trains."""
        return (
            "the head alone"
            if not self.trainable_fraction
            else "all layers"
            if self.trainable_fraction == 1
            else "the head and the last layers"
        )

    def starting_at(self, first: int) -> TrainingStage:
        """Return a copy of the stage that starts at a different epoch."""
        return replace(self, first=first, last=first + self.last - self.first)


def stages(recipe: Recipe) -> list[TrainingStage]:
    """Return a training run's stages.

    Training from random weights has one stage. Training from pretrained weights starts with the head. Then up to four
    groups of layers are unfrozen one after the other, starting with the group before the head, and finally all layers
    are trained. Each epoch in ``train.restarts`` adds a stage that trains all layers.

    Raises:
        RecipeError: ``train.restarts`` is not a list of increasing epochs below ``train.epochs``.
    """
    train = recipe.train
    ends = [*restarts(recipe), train.epochs]
    plan = _first_stages(recipe, ends[0])
    # All layers are trained after a restart.
    rate = train.learning_rate * (recipe.transfer.rate if recipe.model.pretrained else 1.0)
    plan += [TrainingStage(0, first, last, 1.0, rate, train.schedule) for first, last in itertools.pairwise(ends)]
    return [replace(stage, number=number, time_fraction=stage.last / train.epochs) for number, stage in enumerate(plan)]


def restarts(recipe: Recipe) -> list[int]:
    """Return the epochs at which the learning-rate schedule restarts.

    Raises:
        RecipeError: ``train.restarts`` is not a list of increasing epochs below ``train.epochs``.
    """
    text, epochs = recipe.train.restarts, recipe.train.epochs
    try:
        starts = [int(number) for number in text.split(",")] if text.strip() else []
    except ValueError:
        # Epoch 0 is not a valid restart, so the check below raises an error.
        starts = [0]
    if any(first >= second for first, second in itertools.pairwise([0, *starts, epochs])):
        raise RecipeError(
            f"train.restarts is {text!r}, expected increasing epochs below train.epochs ({epochs}), such as '10, 20'"
        )
    return starts


def _first_stages(recipe: Recipe, epochs: int) -> list[TrainingStage]:
    """Return the stages before the first learning-rate restart, numbered by the caller."""
    train, transfer = recipe.train, recipe.transfer
    if not recipe.model.pretrained:
        return [TrainingStage(0, 0, epochs, 1.0, train.learning_rate, train.schedule)]
    frozen = min(epochs, round(epochs * transfer.frozen))
    unfreezing = min(epochs - frozen, round(epochs * transfer.unfreeze))
    rate = train.learning_rate * transfer.rate
    plan = []
    if frozen:
        plan.append(
            TrainingStage(0, 0, frozen, 0.0, train.learning_rate, "cosine" if frozen < epochs else train.schedule)
        )
    groups = min(unfreezing, MAX_GROUPS)
    for number in range(groups):
        first, last = (frozen + unfreezing * n // groups for n in (number, number + 1))
        plan.append(TrainingStage(0, first, last, (number + 1) / (groups + 1), rate, "constant"))
    if frozen + unfreezing < epochs:
        plan.append(TrainingStage(0, frozen + unfreezing, epochs, 1.0, rate, train.schedule))
    return plan


def stage_rate(recipe: Recipe, stage: TrainingStage, steps: int) -> Any:
    """Return a stage's learning rate (a number or a Keras schedule) for ``steps`` steps per epoch."""
    return learning_rate(
        stage.rate, stage.schedule, steps * (stage.last - stage.first), round(steps * recipe.train.warmup_epochs)
    )
