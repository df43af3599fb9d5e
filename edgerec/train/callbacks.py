"""Record and report every epoch of a training, and decide when its stages end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.errors import TrainError
from edgerec.recipe import Recipe
from edgerec.train.backend import keras, reseed
from edgerec.train.distribute import Team
from edgerec.train.optimizer import plateau_rate
from edgerec.train.run import Run, best_epoch, format_metrics
from edgerec.train.transfer import Stage, stages
from edgerec.utils.progress import Listener, Progress

log = logging.getLogger(__name__)

OnEpoch = Callable[[int, Any], None]

# The remaining time is estimated from the mean duration of this many last epochs.
_RECENT = 3


@dataclass(frozen=True)
class TrainingCost:
    """Time and cost of a training so far, and an estimate for the remaining epochs.

    Attributes:
        seconds: duration of the completed epochs, in seconds.
        seconds_left: estimated duration of the remaining epochs, in seconds.
        price_per_hour: price of the machine per hour, in any currency; 0 if it is not known.
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
    """Return the time and cost of the completed epochs, and of the remaining ones if no stage ends early."""
    recent = [row["seconds"] for row in history[-_RECENT:]]
    left = (planned_epochs(recipe, history) - len(history)) * sum(recent) / max(1, len(recent))
    return TrainingCost(sum(row["seconds"] for row in history), left, recipe.train.price_per_hour)


def duration(seconds: float) -> str:
    """Format a duration as ``1:02:03`` (hours, minutes, seconds), or as ``2:03`` if it is less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def checkpoints(run: Run) -> dict[int, Path]:
    """Return the path of each checkpoint of a run, by the number of the epoch (counted from 1)."""
    paths = (run.path / "checkpoints").glob("epoch-" + 5 * "[0-9]" + ".keras")
    return {int(path.stem.partition("-")[2]): path for path in paths}


def next_stage(recipe: Recipe, history: list[dict[str, float]]) -> Stage | None:
    """Return the stage that the next epoch belongs to, or None if the training is complete.

    A stage starts after the last epoch of the previous stage. If the previous stage ended early, the start is earlier
    than planned. For an interrupted stage, the returned start is the first epoch of this stage.
    """
    number = _stage_number(recipe, history[-1]) if history else 0
    for stage in stages(recipe)[number:]:
        actual = stage.starting_at(len(history) - len(_rows_of_stage(recipe, stage, history)))
        if len(history) < actual.last and not early_end(recipe, actual, history):
            return actual
    return None


def planned_epochs(recipe: Recipe, history: list[dict[str, float]]) -> int:
    """Return the total number of epochs of a training if no further stage ends early."""
    number = _stage_number(recipe, history[-1]) if history else 0
    current, *later = stages(recipe)[number:]
    before = len(history) - len(_rows_of_stage(recipe, current, history))
    return before + sum(stage.last - stage.first for stage in (current, *later))


def early_end(recipe: Recipe, stage: Stage, history: list[dict[str, float]]) -> str:
    """Return the reason why a stage ends before its last epoch; empty if the stage continues.

    ``train.early_stopping`` counts the epochs of each stage separately. ``train.max_hours`` is divided among the stages
    in proportion to their epochs, so that one stage does not use the time of the next.
    """
    train, rows = recipe.train, _rows_of_stage(recipe, stage, history)
    if train.max_hours and history:
        left_s = train.max_hours * stage.share * 3600 - sum(row["seconds"] for row in history)
        if history[-1]["seconds"] > left_s:
            limit = f" ({stage.share:.0%} of this time is for {stage.about} and earlier stages)" * (stage.share < 1)
            return f"train.max_hours {train.max_hours:g}{limit} leaves no time for epoch {len(history) + 1}"
    if train.early_stopping and rows and len(history) - best_epoch(rows) >= train.early_stopping:
        return f"no better validation result for {train.early_stopping} epochs (train.early_stopping)"
    return ""


def _rows_of_stage(recipe: Recipe, stage: Stage, history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the rows of the history that belong to a stage."""
    return [row for row in history if _stage_number(recipe, row) == stage.number]


def _stage_number(recipe: Recipe, row: dict[str, float]) -> int:
    """Return the number of the stage that an epoch belongs to.

    Older versions did not record the stage in ``history.csv``. For their runs, the stage is computed from the recipe.
    """
    plan = stages(recipe)
    number = row.get("stage", next((stage.number for stage in plan if row["epoch"] <= stage.last), 0))
    return min(int(number), len(plan) - 1)


def recorder(
    run: Run, recipe: Recipe, stage: Stage, steps: int, team: Team, listener: Listener, on_epoch: OnEpoch | None
) -> Any:
    """Return the Keras callback that reports progress, records epochs and saves checkpoints.

    The class of the callback is local, because it needs Keras.

    Args:
        run: the run to write to.
        recipe: the resolved recipe.
        stage: the current stage.
        steps: number of steps per epoch.
        team: the workers. All of them record the same durations, so that they all end a stage after the same epoch.
        listener: receives the progress every few steps.
        on_epoch: called with the number and the model after every epoch.
    """
    epochs = stage.last + sum(later.last - later.first for later in stages(recipe)[stage.number + 1 :])

    class Recorder(keras().callbacks.Callback):  # type: ignore[misc]
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
            """Raise :class:`TrainError` if the loss ``name`` is NaN or infinite."""
            loss = float(logs.get(name, 0.0))
            if not math.isfinite(loss):
                raise TrainError(
                    f"the {name} became {loss} in epoch {self.epoch + 1}{step}: "
                    f"lower train.learning_rate (now {recipe.train.learning_rate:g}); "
                    f"the checkpoints of earlier epochs are still in {run.path}"
                )

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.check("val_loss", logs)  # a row with NaN would make history.csv unreadable, also for --resume
            row = {key: float(logs[key]) for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in logs}
            rate = float(keras().backend.get_value(self.model.optimizer.learning_rate))
            row |= {"epoch": epoch + 1, "learning_rate": rate, "seconds": team.mean(time.monotonic() - self.began_s)}
            row["stage"] = stage.number
            # Write the row before the checkpoint, because resuming removes rows of epochs without a checkpoint.
            run.write_history([*run.history(), row])
            history = run.history()
            run.save_model(self.model, f"checkpoints/epoch-{epoch + 1:05d}.keras")
            team.merge_statistics(self.model)
            needed = {epoch + 1, best_epoch(history)}
            for number, path in checkpoints(run).items():
                if number not in needed:
                    path.unlink()
            log.info(
                "epoch %d/%d  %s  %.1f s  (%s)",
                epoch + 1,
                epochs,
                format_metrics(row),
                row["seconds"],
                training_cost(history, recipe),
            )
            if on_epoch is not None:
                on_epoch(epoch + 1, self.model)
            if epoch + 1 < stage.last and (reason := early_end(recipe, stage, history)):
                following = next_stage(recipe, history)
                log.warning(
                    "%s: ending after epoch %d/%d: %s; next: %s",
                    f"training {stage.about}" if len(stages(recipe)) > 1 else "training",
                    epoch + 1,
                    epochs,
                    reason,
                    f"training {following.about}" if following else "evaluating the best epoch",
                )
                self.model.stop_training = True

    return Recorder()
