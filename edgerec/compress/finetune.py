"""The few epochs after pruning or before int8."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgerec.contract.progress import Listener, Progress
from edgerec.train.feed import Feed
from edgerec.train.fit import STEPS_PER_CALL, cosine
from edgerec.train.keras import keras

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTune:
    """Data and schedule. ``feed`` starts at the epoch that its user wants; ``validation`` is a finite set."""

    feed: Feed
    validation: Any
    epochs: int
    learning_rate: float
    listener: Listener


def fine_tune(
    model: Any, tune: FineTune, stage: str, *, callbacks: Sequence[Any] = (), keep: Literal["best", "last"] = "best"
) -> None:
    """Train ``model`` in place; with ``keep="best"`` it ends with its best epoch's weights by validation."""
    best: dict[str, Any] = {"accuracy": -1.0}

    class Recorder(keras().callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            done = self.epoch * tune.feed.steps + batch + 1
            text = f"epoch {self.epoch + 1}/{tune.epochs}  loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.4f}"
            tune.listener(Progress(stage, done, tune.epochs * tune.feed.steps, text))

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            log.info(
                "%s: epoch %d/%d  loss %.4f  accuracy %.4f  val_accuracy %.4f",
                stage,
                epoch + 1,
                tune.epochs,
                *(logs[key] for key in ("loss", "accuracy", "val_accuracy")),
            )
            if keep == "best" and logs["val_accuracy"] >= best["accuracy"]:
                best.update(accuracy=logs["val_accuracy"], weights=self.model.get_weights())

    model.compile(
        keras().optimizers.Adam(cosine(tune.learning_rate, tune.feed.steps * tune.epochs)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # Pruning counts its steps in a callback, which must see each of them.
        steps_per_execution=1 if callbacks else min(STEPS_PER_CALL, tune.feed.steps),
    )
    model.fit(
        tune.feed.batches,
        steps_per_epoch=tune.feed.steps,
        epochs=tune.epochs,
        validation_data=tune.validation,
        callbacks=[*callbacks, Recorder()],
        verbose=0,
    )
    if "weights" in best:
        model.set_weights(best["weights"])
