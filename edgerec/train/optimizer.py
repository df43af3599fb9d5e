"""Create the optimizer with its learning-rate schedule.

Keras' ``ReduceLROnPlateau`` is not used, because it starts from scratch when a run is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgerec.train.backend import keras

# Minimum decrease in validation loss that the schedule "plateau" counts as an improvement.
LEAST_GAIN = 1e-4
# The schedule "plateau" multiplies the rate by FACTOR after PATIENCE epochs without improvement.
PATIENCE, FACTOR = 3, 0.5


# Weight decay applies only to the kernels of dense, convolutional and recurrent layers.
# Depthwise kernels are excluded from weight decay, because they have few weights (arXiv:1704.04861).
# With several devices, each copy of a variable has a name suffix, such as /replica_1.
NOT_DECAYED = r"^(?!(.*/)?(recurrent_|pointwise_)?kernel(/replica_\d+)?(:\d+)?$)"


def optimizer(name: str, rate: Any, weight_decay: float = 0.0) -> Any:
    """Return the Keras optimizer for a recipe's ``train.optimizer``.

    Weight decay is decoupled from the gradient (arXiv:1711.05101). Each step reduces every kernel by the fraction
    ``learning rate · weight_decay``, independently of the gradient.

    Args:
        name: ``adam`` or ``sgd`` (Nesterov momentum 0.9).
        rate: learning rate, a number or a schedule.
        weight_decay: 0 for none. Biases, batch normalization and depthwise kernels do not decay.
    """
    options = {"learning_rate": rate, "weight_decay": weight_decay or None}
    optimizers = keras().optimizers
    if name == "sgd":
        result = optimizers.SGD(momentum=0.9, nesterov=True, **options)
    else:
        result = optimizers.Adam(**options)
    result.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    return result


def restored_optimizer(saved: Any, variables: Sequence[Any]) -> Any:
    """Return a copy of a loaded optimizer, including its state.

    The copy is necessary because Keras does not save the list of variables without weight decay, and does not allow
    setting this list after an optimizer is built.

    Args:
        saved: the optimizer, built for ``variables``.
        variables: trainable variables of the model.
    """
    copy = type(saved).from_config(saved.get_config())
    getattr(copy, "inner_optimizer", copy).exclude_from_weight_decay(var_names=[NOT_DECAYED])
    copy.build(variables)
    for variable, value in zip(copy.variables, saved.variables, strict=True):
        variable.assign(value)
    return copy


def cosine(peak: float, steps: int, warmup: int = 0) -> Any:
    """Return a learning-rate schedule with linear warm-up to ``peak`` in ``warmup`` steps, then cosine decay to zero.

    Source: arXiv:1608.03983.
    """
    decay = keras().optimizers.schedules.CosineDecay
    if warmup:
        return decay(0.0, max(1, steps - warmup), warmup_target=peak, warmup_steps=warmup)
    return decay(peak, max(1, steps))


def learning_rate(peak: float, schedule: str, steps: int, warmup: int) -> Any:
    """Return a Keras learning-rate schedule, or a number if the rate is constant within each epoch.

    Args:
        peak: highest learning rate.
        schedule: value of ``train.schedule``. For ``plateau``, :func:`plateau_rate` sets the rate before each epoch.
        steps: number of steps.
        warmup: number of warm-up steps, during which the rate rises from zero to the peak; at most half of ``steps``.
    """
    warmup = min(warmup, steps // 2)
    if schedule == "cosine":
        return cosine(peak, steps, warmup)
    if schedule == "constant" and warmup:
        return keras().optimizers.schedules.PolynomialDecay(0.0, warmup, end_learning_rate=peak)
    return peak


def plateau_rate(peak: float, warmup_epochs: float, val_losses: Sequence[float]) -> float:
    """Return the next epoch's learning rate for the schedule ``plateau``.

    The rate is halved after three epochs without a better validation loss. The rate depends only on the previous
    losses, so that resumed and uninterrupted runs use the same rates. In a warm-up epoch, the rate is the mean of the
    warm-up rates over this epoch.

    Args:
        peak: highest learning rate.
        warmup_epochs: number of warm-up epochs, during which the rate rises from zero to the peak.
        val_losses: validation losses of the stage's epochs so far.
    """
    rate, best, waited = peak, float("inf"), 0
    for loss in val_losses:
        waited += 1
        if loss < best - LEAST_GAIN:
            best, waited = loss, 0
        elif waited >= PATIENCE:
            rate, waited = rate * FACTOR, 0
    done = len(val_losses)
    if done >= warmup_epochs:
        return rate
    warmup_fraction = min(1.0, warmup_epochs - done)
    mean_warmup_factor = (2 * done + warmup_fraction) / (2 * warmup_epochs)
    return rate * (mean_warmup_factor * warmup_fraction + 1 - warmup_fraction)
