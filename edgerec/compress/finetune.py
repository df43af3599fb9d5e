"""Fine-tune a trained model during pruning, clustering and quantization-aware training.

Keras' ``BackupAndRestore`` is not used, because it resumes training even with different settings, and does not keep the
best epoch's weights.
"""

from __future__ import annotations

import json
import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.recipe import Recipe, TrainSection
from edgerec.train.backend import cause, freeze_batch_normalization, keras, reseed
from edgerec.train.distillation_loss import DistillationLoss
from edgerec.train.distribute import Workers
from edgerec.train.input_pipeline import Replicas
from edgerec.train.optimizer import cosine, optimizer
from edgerec.train.run import format_metrics
from edgerec.train.training_step import STEPS_PER_CALL, compile_classifier
from edgerec.utils.atomic import replacing
from edgerec.utils.bounded_parsing import check_zip_file, parse_json
from edgerec.utils.progress import Listener, Progress

log = logging.getLogger(__name__)

# Activation ranges are frozen in this fraction of the QAT epochs, at the end of training.
FROZEN_FRACTION = 1 / 3
# These recipe keys do not affect fine-tuning, so they may change before an interrupted stage is resumed.
_IRRELEVANT = {"compress": ("max_drop", "calibration", "float_layers")}


@dataclass(frozen=True)
class FineTune:
    """Data, schedule and settings for one fine-tuning run.

    Attributes:
        feed: function ``(epoch, replicas)`` that returns augmented training batches, beginning with ``epoch``.
        plain: training batches without augmentation.
        steps: number of steps per epoch.
        validation: function ``(replicas)`` that returns ``validation_steps`` validation batches.
        workers: the devices used for training.
        epochs: number of epochs of each stage.
        learning_rate: initial learning rate, which decays to zero along a cosine.
        retraining_rate: initial learning rate for pruning stages, in which the remaining weights have to adapt.
        train: the run's training settings. Fine-tuning uses ``optimizer``, ``weight_decay``, ``accumulate`` and
            ``xla``; the batches already follow ``batch_size`` and ``class_weights``.
        freeze_bn: whether batch normalization keeps its statistics, scale and offset.
        teacher: distillation loss between the outputs and the float model's outputs, or None to use only labels.
        teacher_weight: weight of the distillation loss. The label loss has the weight ``1 - teacher_weight``.
        seed: seed of random layers such as dropout.
        listener: receives the progress.
        checkpoints: folder in which each stage saves its state as an ``.npz`` file.
        settings: the settings that affect the result. A state saved with different settings is not resumed.
    """

    feed: Callable[[int, Replicas], Any]
    plain: Any
    steps: int
    validation: Callable[[Replicas], Any]
    validation_steps: int
    workers: Workers
    epochs: int
    learning_rate: float
    retraining_rate: float
    train: TrainSection
    freeze_bn: bool
    teacher: DistillationLoss | None
    teacher_weight: float
    seed: int
    listener: Listener
    checkpoints: Path
    settings: dict[str, Any]


def fine_tune(
    build: Callable[[], Any],
    tune: FineTune,
    stage: str,
    *,
    callbacks: Sequence[Any] = (),
    keep_from: int = 0,
    retraining: bool = False,
    calibrator: Callable[[Any], Callable[[], None]] | None = None,
    freeze: Callable[[Any], None] | None = None,
) -> Any:
    """Train the model that ``build`` returns, and return it with the weights from its best validation epoch.

    An interrupted stage is resumed after its last complete epoch.

    Args:
        build: function that returns the model to train. All calls return equal models.
        tune: data, schedule and settings.
        stage: name of the stage, for messages and the state file's name.
        callbacks: Keras callbacks to call in each step.
        keep_from: first epoch, counted from 0, whose weights may be returned.
        retraining: use ``tune.retraining_rate`` instead of ``tune.learning_rate``.
        calibrator: function that takes the model and returns a function that sets the model's activation ranges. The
            latter is called before the first step, and again before the ranges are frozen.
        freeze: function that freezes the activation ranges of the model, called before the last third of the epochs, or
            before the only epoch. Weights from earlier epochs are not returned, because their activation ranges were
            measured with augmentation and dropout.

    Raises:
        ModelError: the loss became NaN or infinite.
        RecipeError: the batch size is not a multiple of the number of devices times ``train.accumulate``.
    """
    tune.workers.check_batch(tune.train.batch_size, tune.train.accumulate)
    model = build()
    calibrate = calibrator(model) if calibrator else None
    if calibrate:
        calibrate()
    # With several devices, train a mirrored copy and keep the original, because mirrored models cannot be saved.
    trained = model
    if tune.workers.strategy is not None:
        with tune.workers.scope():
            trained = build()
        trained.set_weights(model.get_weights())
    frozen_bn = freeze_batch_normalization(trained) if tune.freeze_bn else []
    frozen_from = _frozen_from(tune.epochs) if freeze else tune.epochs
    keep_from = max(keep_from, frozen_from) if freeze else keep_from
    state = _StageState(state_path(tune.checkpoints, stage), stage, tune, keep_from)
    peak_rate = tune.retraining_rate if retraining else tune.learning_rate
    rate = cosine(peak_rate, tune.steps * tune.epochs)
    steps_per_call = 1 if callbacks else min(STEPS_PER_CALL, tune.steps)
    compiled = partial(
        compile_classifier,
        trained,
        steps_per_call=steps_per_call,
        xla=tune.train.xla,
        micro_batches=tune.train.accumulate,
        teacher=tune.teacher,
        teacher_weight=tune.teacher_weight,
    )
    with tune.workers.scope():
        compiled(optimizer(tune.train.optimizer, rate, tune.train.weight_decay))
    done = state.restore(trained)
    tune.workers.require_equal({f"{stage}: epoch": done})
    for first, last in ((0, frozen_from), (frozen_from, tune.epochs)):
        if freeze and first == frozen_from < last:
            if calibrate and frozen_from > 0 and done <= frozen_from:
                _copy(trained, model)
                calibrate()
                _copy(model, trained)
            freeze(trained)
            with tune.workers.scope():
                # Compile the model again, because its traced training step would still update the activation ranges.
                compiled(trained.optimizer)
        if max(first, done) < last:
            trained.fit(
                tune.workers.distribute(partial(tune.feed, max(first, done))),
                steps_per_epoch=tune.steps,
                initial_epoch=max(first, done),
                epochs=last,
                validation_data=tune.workers.distribute(tune.validation),
                validation_steps=tune.validation_steps,
                callbacks=[*callbacks, _recorder(state, peak_rate)],
                verbose=0,
            )
    for layer in frozen_bn:
        layer.trainable = True
    model.set_weights(state.best)
    return model


def _frozen_from(epochs: int) -> int:
    return epochs - max(1, round(epochs * FROZEN_FRACTION))


def _copy(source: Any, to: Any) -> None:
    if source is not to:
        to.set_weights(source.get_weights())


def state_path(checkpoints: Path, stage: str) -> Path:
    """Return the path of a stage's state file."""
    return checkpoints / f"{stage.replace(' ', '-')}.npz"


def resumable_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that must not change when interrupted fine-tuning is resumed."""
    recipe = replace(recipe, augment=recipe.augment.unmixed)
    values = {key: value for key, value in recipe.to_dict().items() if key != "data"}
    for section, keys in _IRRELEVANT.items():
        values[section] = {key: value for key, value in values[section].items() if key not in keys}
    return values


def other_setting(checkpoints: Path, settings: dict[str, Any]) -> str:
    """Describe the first difference between ``settings`` and the settings in the saved fine-tuning states.

    Return an empty string if there is no difference. Unreadable files are ignored, because their stage starts over.
    """
    for path in sorted(checkpoints.glob("*.npz")):
        try:
            saved = _read_about(path)["settings"]
        except UNREADABLE_STATE:
            continue
        for section, values in settings.items():
            pairs = values if isinstance(values, dict) else {"": values}
            old = saved.get(section, {}) if isinstance(values, dict) else {"": saved.get(section)}
            for key, value in pairs.items():
                if isinstance(old, dict) and old.get(key) != value:
                    name = f"{section}.{key}" if key else section
                    return f"{name} {old.get(key)!r} instead of {value!r}"
    return ""


def is_complete(checkpoints: Path, stages: int, epochs: int) -> bool:
    """Return whether ``stages`` fine-tuning stages were completed, each with ``epochs`` epochs."""
    try:
        done = [int(_read_about(path)["epoch"]) for path in checkpoints.glob("*.npz")]
    except UNREADABLE_STATE:
        return False
    return len(done) == stages and min(done) >= epochs


def _read_about(path: Path) -> dict[str, Any]:
    check_zip_file(path, MAX_STATE_BYTES)
    with np.load(path, allow_pickle=False) as file:
        return _about(file["about"])


MAX_STATE_BYTES = 8 << 30
# Reading a damaged or unrelated file raises one of these exceptions.
UNREADABLE_STATE = (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def _about(array: Any) -> dict[str, Any]:
    """Parse a state file's JSON object, or raise :class:`ValueError` if it is invalid."""
    value = parse_json(str(array))
    if not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        raise ValueError("the state file contains no settings")
    return value


class _StageState:
    """A fine-tuning stage's state: weights, optimizer variables, and the best epoch's weights."""

    def __init__(self, path: Path, stage: str, tune: FineTune, keep_from: int) -> None:
        self.path, self.stage, self.tune, self.keep_from = path, stage, tune, keep_from
        self.best: list[Any] = []
        self.best_accuracy = -1.0

    def restore(self, model: Any) -> int:
        """Restore the state of an interrupted stage. The model is unchanged if the state cannot be used.

        Returns:
            The number of completed epochs.
        """
        try:
            check_zip_file(self.path, MAX_STATE_BYTES)
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            about = _about(arrays.pop("about"))
            if about["settings"] != self.tune.settings:
                return 0
            epoch, accuracy = int(about["epoch"]), float(about["accuracy"])
            if not 0 < epoch <= self.tune.epochs:
                raise ValueError(f"epoch must be from 1 to {self.tune.epochs}, got {epoch}")
            weights = _fitting(arrays, "weights", model.weights)
            optimizer_state = _fitting(arrays, "optimizer", model.optimizer.variables)
            best = _fitting(arrays, "best", model.weights)
        except FileNotFoundError:
            return 0
        except UNREADABLE_STATE as error:
            log.warning("%s cannot be used (%s): starting %s again", self.path, cause(error), self.stage)
            return 0
        # Restore the state only after validating all of it, so that no error can leave the model partly restored.
        model.set_weights(weights)
        for variable, value in zip(model.optimizer.variables, optimizer_state, strict=True):
            variable.assign(value)
        self.best, self.best_accuracy = best, accuracy
        log.info("%s: resuming after epoch %d/%d", self.stage, epoch, self.tune.epochs)
        return epoch

    def record(self, model: Any, epoch: int, accuracy: float) -> None:
        """Save the fine-tuning state after an epoch, counted from 1."""
        weights = model.get_weights()
        if not self.best or (epoch > self.keep_from and accuracy >= self.best_accuracy):
            self.best = weights
            self.best_accuracy = accuracy if epoch > self.keep_from else -1.0
        kinds = {
            "weights": weights,
            "optimizer": keras().backend.batch_get_value(model.optimizer.variables),
            "best": self.best,
        }
        about: dict[str, Any] = {kind: len(arrays) for kind, arrays in kinds.items()}
        about |= {"epoch": epoch, "accuracy": self.best_accuracy, "settings": self.tune.settings}
        arrays = {f"{kind}{i}": array for kind, values in kinds.items() for i, array in enumerate(values)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial, open(partial, "wb") as file:
            np.savez(file, about=json.dumps(about), **arrays)


def _fitting(arrays: dict[str, Any], kind: str, variables: Sequence[Any]) -> list[Any]:
    """Return the saved arrays in the order of the variables to restore.

    Raises:
        ValueError: an array does not match its variable, or contains NaN or infinite values.
    """
    values = [arrays[f"{kind}{i}"] for i in range(len(variables))]
    if f"{kind}{len(variables)}" in arrays:
        raise ValueError(f"the state file contains more {kind} arrays than the model")
    for variable, value in zip(variables, values, strict=True):
        dtype = np.dtype(variable.dtype.as_numpy_dtype)
        if tuple(variable.shape) != value.shape or value.dtype != dtype:
            raise ValueError(
                f"the state file stores {variable.name} as {value.dtype} {value.shape}, expected {dtype} "
                f"{tuple(variable.shape)}"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"the saved array for {variable.name} contains NaN or infinite values")
    return values


def _recorder(state: _StageState, peak_rate: float) -> Any:
    """Return a Keras callback that reports the progress, and saves the training state after each epoch.

    The class is local, so that this module can be imported without Keras.
    """
    tune, stage = state.tune, state.stage

    class Recorder(keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch
            reseed(self.model, tune.seed, epoch)

        def check(self, name: str, logs: Any) -> None:
            """Raise :class:`ModelError` if the loss called ``name`` is NaN or infinite."""
            if not math.isfinite(logs[name]):
                raise ModelError(
                    f"the {name} became {logs[name]} in epoch {self.epoch + 1} of {stage}: lower "
                    f"compress.learning_rate (now {peak_rate:g}; --learning-rate of edgerec quantize), and add "
                    "--overwrite"
                )

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.check("loss", logs)
            done = self.epoch * tune.steps + batch + 1
            text = f"epoch {self.epoch + 1}/{tune.epochs}  {format_metrics(logs)}"
            tune.listener(Progress(stage, done, tune.epochs * tune.steps, text))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.check("val_loss", logs)
            # Autoencoders have no accuracy, so the epoch with the lowest loss is the best.
            state.record(self.model, epoch + 1, logs.get("val_accuracy", 1 / (1 + logs["val_loss"])))
            tune.workers.merge_statistics(self.model)
            log.info("%s: epoch %d/%d  %s", stage, epoch + 1, tune.epochs, format_metrics(logs))

    return Recorder()
