"""How weights move: the optimizer, and its rate over a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgerec.contract.recipe import TrainSection
from edgerec.train.keras import keras

# Of the schedule plateau: a validation loss is better by so much, or it counts as none.
LEAST_GAIN, PATIENCE, FACTOR = 1e-4, 3, 0.5


def optimizer(name: str, rate: Any) -> Any:
    """Keras' optimizer for a recipe's ``train.optimizer``; ``rate`` is a number or a schedule."""
    if name == "sgd":
        return keras().optimizers.SGD(rate, momentum=0.9, nesterov=True)
    return keras().optimizers.Adam(rate)


def cosine(peak: float, steps: int, warmup: int = 0) -> Any:
    """Up to ``peak`` over ``warmup`` steps, then half a cosine down to zero (arXiv:1608.03983)."""
    decay = keras().optimizers.schedules.CosineDecay
    if warmup:
        return decay(0.0, max(1, steps - warmup), warmup_target=peak, warmup_steps=warmup)
    return decay(peak, max(1, steps))


def learning_rate(train: TrainSection, steps: int) -> Any:
    """The rate of a training of ``steps`` an epoch: a schedule over all of them, or the number that it begins with."""
    if train.schedule != "cosine":
        return train.learning_rate
    total = steps * train.epochs
    warmup = min(round(steps * train.warmup_epochs), total // 2)
    return cosine(train.learning_rate, total, warmup)


def plateau_rate(train: TrainSection, val_losses: Sequence[float]) -> float:
    """The rate of the next epoch by the schedule plateau: halved after each three epochs without a better loss.

    It follows from the losses alone, so that a resumed training has the rate of an unbroken one.
    """
    rate, best, waited = train.learning_rate, float("inf"), 0
    for loss in val_losses:
        waited += 1
        if loss < best - LEAST_GAIN:
            best, waited = loss, 0
        elif waited >= PATIENCE:
            rate, waited = rate * FACTOR, 0
    return rate
