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

# The epochs to come will take what these last ones took.
_RECENT = 3


@dataclass(frozen=True)
class TrainingCost:
    """Time and money of a training, so far and to come."""

    seconds: float
    seconds_left: float
    price_per_hour: float

    def __str__(self) -> str:
        said = f"{duration(self.seconds)} so far, {duration(self.seconds_left)} to go"
        if not self.price_per_hour:
            return said
        cost, left = (seconds / 3600 * self.price_per_hour for seconds in (self.seconds, self.seconds_left))
        return f"{said}; cost {cost:.2f} so far, {left:.2f} to come"


def training_cost(history: list[dict[str, float]], recipe: Recipe) -> TrainingCost:
    """Return the time and cost of the completed epochs, and of the remaining ones if no stage ends early."""
    recent = [row["seconds"] for row in history[-_RECENT:]]
    left = (planned_epochs(recipe, history) - len(history)) * sum(recent) / max(1, len(recent))
    return TrainingCost(sum(row["seconds"] for row in history), left, recipe.train.price_per_hour)


def duration(seconds: float) -> str:
    """For people, as ``1:02:03``, or ``2:03`` where there are no hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def checkpoints(run: Run) -> dict[int, Path]:
    """The epochs whose model is there."""
    found = (run.path / "checkpoints").glob("epoch-" + 5 * "[0-9]" + ".keras")
    return {int(path.stem.partition("-")[2]): path for path in found}


def next_stage(recipe: Recipe, history: list[dict[str, float]]) -> Stage | None:
    """Return the stage that the next epoch belongs to, or None if the training is complete.

    A stage starts after the last epoch of the previous stage. If the previous stage ended early, the start is earlier
    than planned. For an interrupted stage, the returned start is the first epoch of this stage.
    """
    number = _stage_number(recipe, history[-1]) if history else 0
    for stage in stages(recipe)[number:]:
        moved = stage.starting_at(len(history) - len(_rows(recipe, stage, history)))
        if len(history) < moved.last and not early_end(recipe, moved, history):
            return moved
    return None


def planned_epochs(recipe: Recipe, history: list[dict[str, float]]) -> int:
    """Return the total number of epochs of a training if no further stage ends early."""
    number = _stage_number(recipe, history[-1]) if history else 0
    current, *later = stages(recipe)[number:]
    before = len(history) - len(_rows(recipe, current, history))
    return before + sum(stage.last - stage.first for stage in (current, *later))


def early_end(recipe: Recipe, stage: Stage, history: list[dict[str, float]]) -> str:
    """Return the reason why a stage ends before its last epoch; empty if the stage continues.

    ``train.early_stopping`` counts the epochs of each stage separately. ``train.max_hours`` is divided among the stages
    in proportion to their epochs, so that one stage does not use the time of the next.
    """
    train, rows = recipe.train, _rows(recipe, stage, history)
    if train.max_hours and history:
        left_s = train.max_hours * stage.share * 3600 - sum(row["seconds"] for row in history)
        if history[-1]["seconds"] > left_s:
            limit = f" ({stage.share:.0%} of it for {stage.about} and earlier stages)" * (stage.share < 1)
            return f"train.max_hours {train.max_hours:g}{limit} leaves no time for epoch {len(history) + 1}"
    if train.early_stopping and rows and len(history) - best_epoch(rows) >= train.early_stopping:
        return f"no better validation result for {train.early_stopping} epochs (train.early_stopping)"
    return ""


def _rows(recipe: Recipe, stage: Stage, history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [row for row in history if _stage_number(recipe, row) == stage.number]


def _stage_number(recipe: Recipe, row: dict[str, float]) -> int:
    """Return the number of the stage that an epoch belongs to. For older runs, which did not record it, compute it."""
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
        team: the workers. All workers record the same times, so that all end a stage after the same epoch.
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
            text = f"epoch {self.epoch + 1}/{epochs}  {format_metrics(logs)}"
            done = self.epoch * steps + batch + 1
            listener(Progress("training", done, epochs * steps, text))

        def check(self, name: str, logs: Any, step: str = "") -> None:
            loss = float(logs.get(name, 0.0))
            if not math.isfinite(loss):
                raise TrainError(
                    f"the {name} became {loss} in epoch {self.epoch + 1}{step}: "
                    f"lower train.learning_rate (now {recipe.train.learning_rate:g}); "
                    f"the checkpoints before stay in {run.path}"
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
            kept = {epoch + 1, best_epoch(history)}
            for number, path in checkpoints(run).items():
                if number not in kept:
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
                    f"training {following.about}" if following else "measuring the best epoch",
                )
                self.model.stop_training = True

    return Recorder()
