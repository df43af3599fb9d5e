"""Record and report each training epoch, save checkpoints, and apply early stopping.

Keras' ``EarlyStopping`` and ``ReduceLROnPlateau`` are not used, because they start from scratch when a run is resumed.
``TerminateOnNaN`` is not used, because it stops training without an error and ignores the validation loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgerec.errors import TrainError
from edgerec.recipe import Recipe
from edgerec.train.backend import keras, reseed
from edgerec.train.checkpoints import checkpoints
from edgerec.train.distribute import Workers
from edgerec.train.early_stopping import early_end, next_stage, planned_epochs
from edgerec.train.optimizer import plateau_rate
from edgerec.train.run import Run, best_epoch, format_metrics
from edgerec.train.stages import TrainingStage, stages
from edgerec.utils.progress import Listener, Progress

log = logging.getLogger(__name__)

OnEpoch = Callable[[int, Any], None]

# Number of recent epochs whose mean duration is used to estimate the remaining time.
_RECENT = 3


@dataclass(frozen=True)
class TrainingCost:
    """A training run's time and cost so far, and an estimate for the remaining epochs.

    Attributes:
        seconds: duration of the completed epochs, in seconds.
        seconds_left: estimated duration of the remaining epochs, in seconds.
        price_per_hour: price of the machine per hour, in any currency, or 0 if it is unknown.
    """

    seconds: float
    seconds_left: float
    price_per_hour: float

    def __str__(self) -> str:
        time_text = f"{duration(self.seconds)} so far, {duration(self.seconds_left)} to go"
        if not self.price_per_hour:
            return time_text
        cost, left = (seconds / 3600 * self.price_per_hour for seconds in (self.seconds, self.seconds_left))
        return f"{time_text}; cost {cost:.2f} so far, {left:.2f} to come"


def training_cost(history: list[dict[str, float]], recipe: Recipe) -> TrainingCost:
    """Return the time and cost of the completed epochs, and an estimate for the remaining epochs."""
    recent = [row["seconds"] for row in history[-_RECENT:]]
    left = (planned_epochs(recipe, history) - len(history)) * sum(recent) / max(1, len(recent))
    return TrainingCost(sum(row["seconds"] for row in history), left, recipe.train.price_per_hour)


def duration(seconds: float) -> str:
    """Format a duration as ``1:02:03`` (hours, minutes, seconds), or as ``2:03`` if shorter than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def epoch_recorder(
    run: Run,
    recipe: Recipe,
    stage: TrainingStage,
    steps: int,
    workers: Workers,
    listener: Listener,
    on_epoch: OnEpoch | None,
) -> Any:
    """Return a Keras callback that reports progress, records epochs, saves checkpoints and applies early stopping.

    The class of the callback is defined here, because its base class is in Keras, which is imported only when needed.

    Args:
        run: the run to write to.
        recipe: the resolved recipe.
        stage: the current stage.
        steps: number of steps per epoch.
        workers: the workers. They all record the same durations, so that a stage ends after the same epoch for all of
            them.
        listener: receives the progress every few steps.
        on_epoch: function called after every epoch with the epoch's number and the Keras model.
    """
    epochs = stage.last + sum(later.last - later.first for later in stages(recipe)[stage.number + 1 :])

    class EpochRecorder(keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch, self.began_s = epoch, time.monotonic()
            reseed(self.model, recipe.seed, epoch)
            if stage.schedule == "plateau":
                losses = [row["val_loss"] for row in run.history()[stage.first :]]
                rate = plateau_rate(stage.rate, recipe.train.warmup_epochs, losses)
                self.model.optimizer.learning_rate.assign(rate)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.check("loss", logs, f", by step {batch + 1} of {steps}")
            status = f"epoch {self.epoch + 1}/{epochs}  {format_metrics(logs)}"
            done = self.epoch * steps + batch + 1
            listener(Progress("training", done, epochs * steps, status))

        def check(self, name: str, logs: Any, step: str = "") -> None:
            """Raise :class:`TrainError` if the training or validation loss is NaN or infinite."""
            loss = float(logs.get(name, 0.0))
            if not math.isfinite(loss):
                raise TrainError(
                    f"the {name} became {loss} in epoch {self.epoch + 1}{step}: "
                    f"lower train.learning_rate (now {recipe.train.learning_rate:g}); "
                    f"the checkpoints from earlier epochs are still in {run.path}"
                )

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            # A run with NaN in its history could not be resumed.
            self.check("val_loss", logs)
            history = self.save(epoch, logs)
            log.info(
                "epoch %d/%d  %s  %.1f s  (%s)",
                epoch + 1,
                epochs,
                format_metrics(history[-1]),
                history[-1]["seconds"],
                training_cost(history, recipe),
            )
            if on_epoch is not None:
                on_epoch(epoch + 1, self.model)
            if epoch + 1 < stage.last and (reason := early_end(recipe, stage, history)):
                following = next_stage(recipe, history)
                log.warning(
                    "%s: ending after epoch %d/%d: %s; next: %s",
                    f"training {stage.description}" if len(stages(recipe)) > 1 else "training",
                    epoch + 1,
                    epochs,
                    reason,
                    f"training {following.description}" if following else "evaluating the best epoch",
                )
                self.model.stop_training = True

        def save(self, epoch: int, logs: Any) -> list[dict[str, float]]:
            """Record an epoch in the history, save its checkpoint, and return the history."""
            row = {key: float(logs[key]) for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in logs}
            rate = float(keras().backend.get_value(self.model.optimizer.learning_rate))
            row |= {"epoch": epoch + 1, "learning_rate": rate, "seconds": workers.mean(time.monotonic() - self.began_s)}
            row["stage"] = stage.number
            # Write the history row before saving the checkpoint, because resuming discards rows without a checkpoint.
            run.write_history([*run.history(), row])
            history = run.history()
            run.save_model(self.model, f"checkpoints/epoch-{epoch + 1:05d}.keras")
            workers.merge_statistics(self.model)
            needed = {epoch + 1, best_epoch(history)}
            for number, path in checkpoints(run).items():
                if number not in needed:
                    path.unlink()
            return history

    return EpochRecorder()
