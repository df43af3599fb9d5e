"""The few epochs after pruning, clustering or before int8."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.files import replacing
from edgerec.contract.progress import Listener, Progress
from edgerec.train.distribute import Team
from edgerec.train.feed import Places
from edgerec.train.fit import STEPS_PER_CALL
from edgerec.train.keras import compile_classifier, keras, reseed
from edgerec.train.optimizer import cosine, optimizer
from edgerec.train.run import learned
from edgerec.train.teacher import Teacher

log = logging.getLogger(__name__)

# With their activation ranges fixed, the weights settle on what will run: the last third of the epochs.
FROZEN_PART = 1 / 3


@dataclass(frozen=True)
class FineTune:
    """Data and schedule.

    Attributes:
        feed: training batches from an epoch of the fine-tuning on, of some places of each.
        plain: training batches that are not augmented.
        steps: of an epoch.
        validation: a finite set, likewise; ``validation_steps`` of them.
        team: what trains.
        epochs: how many.
        learning_rate: the highest; it falls to zero as a half cosine.
        retraining_rate: the same where weights were taken away and the others must find new places.
        optimizer: as the recipe's ``train.optimizer``.
        teacher: the distance to the float model's answers, which has the part ``teacher_weight`` of the loss beside the
            labels; None for labels alone.
        seed: of what is random inside of the model.
        listener: told of the progress.
        checkpoints: folder where each stage keeps its state, an ``.npz`` each.
        settings: what the state depends on; a state of other settings is not gone on with.
    """

    feed: Callable[[int, Places], Any]
    plain: Any
    steps: int
    validation: Callable[[Places], Any]
    validation_steps: int
    team: Team
    epochs: int
    learning_rate: float
    retraining_rate: float
    optimizer: str
    teacher: Teacher | None
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
    settler: Callable[[Any], Callable[[], None]] | None = None,
    freeze: Callable[[Any], None] | None = None,
) -> Any:
    """The model that ``build`` makes, trained, with its best epoch's weights by validation.

    A stage that was stopped goes on after its last whole epoch.

    Args:
        build: makes what to train; the same at each call.
        tune: how.
        stage: its name, for people and for the state's file.
        callbacks: Keras' own, which must see every step.
        keep_from: epochs before this one, counted from 0, cannot be the best.
        retraining: at ``tune.retraining_rate``.
        settler: makes of the model what is called before the first step and before the last third.
        freeze: called with what trains before the last third.
    """
    model = build()
    settle = settler(model) if settler else None
    if settle:
        settle()
    # What several devices train are other variables than those of a model that one reads and converts.
    trained = model
    if tune.team.strategy is not None:
        with tune.team.scope():
            trained = build()
        trained.set_weights(model.get_weights())
    state = _State(tune.checkpoints / f"{stage.replace(' ', '-')}.npz", stage, tune, keep_from)
    rate = cosine(tune.retraining_rate if retraining else tune.learning_rate, tune.steps * tune.epochs)
    steps_per_call = 1 if callbacks else min(STEPS_PER_CALL, tune.steps)
    compiled = partial(
        compile_classifier,
        trained,
        steps_per_call=steps_per_call,
        teacher=tune.teacher,
        teacher_weight=tune.teacher_weight,
    )
    with tune.team.scope():
        compiled(optimizer(tune.optimizer, rate))
    done = state.restore(trained)
    tune.team.agree({f"{stage}: epoch": done})
    frozen_from = tune.epochs - round(tune.epochs * FROZEN_PART) if freeze else tune.epochs
    for first, last in ((0, frozen_from), (frozen_from, tune.epochs)):
        if freeze and first == frozen_from < last:
            if settle and done <= frozen_from:
                _copy(trained, model)
                settle()
                _copy(model, trained)
            freeze(trained)
            with tune.team.scope():
                # The step is traced anew, with what is frozen now.
                compiled(trained.optimizer)
        if max(first, done) < last:
            trained.fit(
                tune.team.spread(partial(tune.feed, max(first, done))),
                steps_per_epoch=tune.steps,
                initial_epoch=max(first, done),
                epochs=last,
                validation_data=tune.team.spread(tune.validation),
                validation_steps=tune.validation_steps,
                callbacks=[*callbacks, _recorder(state)],
                verbose=0,
            )
    model.set_weights(state.best)
    return model


def _copy(source: Any, to: Any) -> None:
    if source is not to:
        to.set_weights(source.get_weights())


class _State:
    """How far a stage is: weights, optimizer, and the best epoch's weights."""

    def __init__(self, path: Path, stage: str, tune: FineTune, keep_from: int) -> None:
        self.path, self.stage, self.tune, self.keep_from = path, stage, tune, keep_from
        self.best: list[Any] = []
        self.best_accuracy = -1.0

    def restore(self, model: Any) -> int:
        """Take up what a stopped stage left; returns how many epochs it has done."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                kept = dict(file)
            about = json.loads(str(kept.pop("about")))
            if about["settings"] != self.tune.settings:
                return 0
            of = {kind: [kept[f"{kind}{i}"] for i in range(about[kind])] for kind in ("weights", "optimizer", "best")}
            model.set_weights(of["weights"])
            for variable, value in zip(model.optimizer.variables, of["optimizer"], strict=True):
                variable.assign(value)
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be gone on with (%s): %s starts again", self.path, error, self.stage)
            return 0
        self.best, self.best_accuracy = of["best"], about["accuracy"]
        log.info("%s: going on after epoch %d/%d", self.stage, about["epoch"], self.tune.epochs)
        return int(about["epoch"])

    def record(self, model: Any, epoch: int, accuracy: float) -> None:
        """Keep the state after ``epoch``, counted from 1."""
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


def _recorder(state: _State) -> Any:
    """The callback that reports and keeps. Its class needs Keras, so it is made here."""
    tune, stage = state.tune, state.stage

    class Recorder(keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch
            reseed(self.model, tune.seed, epoch)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            done = self.epoch * tune.steps + batch + 1
            text = f"epoch {self.epoch + 1}/{tune.epochs}  {learned(logs)}"
            tune.listener(Progress(stage, done, tune.epochs * tune.steps, text))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            # An autoencoder has no accuracy: the lower its loss, the better.
            state.record(self.model, epoch + 1, logs.get("val_accuracy", 1 / (1 + logs["val_loss"])))
            log.info("%s: epoch %d/%d  %s", stage, epoch + 1, tune.epochs, learned(logs))

    return Recorder()
