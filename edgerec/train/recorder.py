"""What is kept and told of a training after every epoch, and when it has had enough."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.progress import Listener, Progress
from edgerec.contract.recipe import Recipe
from edgerec.errors import TrainError
from edgerec.train.distribute import Team
from edgerec.train.keras import keras, reseed
from edgerec.train.optimizer import plateau_rate
from edgerec.train.run import Run, best_epoch, learned

log = logging.getLogger(__name__)

OnEpoch = Callable[[int, Any], None]

# The epochs to come will take what these last ones took.
_RECENT = 3


@dataclass(frozen=True)
class Bill:
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


def bill(history: list[dict[str, float]], recipe: Recipe) -> Bill:
    """What a training has taken by its history, and will take if it has all its epochs."""
    recent = [row["seconds"] for row in history[-_RECENT:]]
    left = (recipe.train.epochs - len(history)) * sum(recent) / max(1, len(recent))
    return Bill(sum(row["seconds"] for row in history), left, recipe.train.price_per_hour)


def duration(seconds: float) -> str:
    """For people, as ``1:02:03``, or ``2:03`` where there are no hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def checkpoints(run: Run) -> dict[int, Path]:
    """The epochs whose model is there."""
    found = (run.path / "checkpoints").glob("epoch-" + 5 * "[0-9]" + ".keras")
    return {int(path.stem.partition("-")[2]): path for path in found}


def enough(recipe: Recipe, history: list[dict[str, float]]) -> bool:
    """Whether a training has all its epochs, no better one for too long, or no time for another."""
    train, done = recipe.train, len(history)
    if done >= train.epochs:
        return True
    if not done:
        return False
    if train.max_hours and bill(history, recipe).seconds + history[-1]["seconds"] > train.max_hours * 3600:
        log.warning("train.max_hours %g leaves no time for epoch %d of %d", train.max_hours, done + 1, train.epochs)
        return True
    return bool(train.early_stopping and done - best_epoch(history) >= train.early_stopping)


def recorder(run: Run, recipe: Recipe, steps: int, team: Team, listener: Listener, on_epoch: OnEpoch | None) -> Any:
    """The Keras callback that reports, records and checkpoints. Its class needs Keras, so it is made here.

    Args:
        run: where to.
        recipe: resolved.
        steps: of an epoch.
        team: what all of it must agree on, as when there has been enough.
        listener: told of every few steps.
        on_epoch: called with the number and the model after every epoch.
    """

    class Recorder(keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch, self.began_s = epoch, time.monotonic()
            reseed(self.model, recipe.seed, epoch)
            if recipe.train.schedule == "plateau":
                losses = [row["val_loss"] for row in run.history()]
                self.model.optimizer.learning_rate.assign(plateau_rate(recipe.train, losses))

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise TrainError(
                    f"the loss became {loss} in epoch {self.epoch + 1}, by step {batch + 1} of {steps}: "
                    f"lower train.learning_rate (now {recipe.train.learning_rate:g}); "
                    f"the checkpoints before stay in {run.path}"
                )
            text = f"epoch {self.epoch + 1}/{recipe.train.epochs}  {learned(logs)}"
            done = self.epoch * steps + batch + 1
            listener(Progress("training", done, recipe.train.epochs * steps, text))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            row = {key: float(logs[key]) for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in logs}
            rate = float(keras().backend.get_value(self.model.optimizer.learning_rate))
            row |= {"epoch": epoch + 1, "learning_rate": rate, "seconds": team.mean(time.monotonic() - self.began_s)}
            # The row first: what it says of an epoch without a checkpoint is cut off when the run is resumed.
            run.write_history([*run.history(), row])
            history = run.history()
            run.save_model(self.model, f"checkpoints/epoch-{epoch + 1:05d}.keras")
            kept = {epoch + 1, best_epoch(history)}
            for number, path in checkpoints(run).items():
                if number not in kept:
                    path.unlink()
            log.info(
                "epoch %d/%d  %s  %.1f s  (%s)",
                epoch + 1,
                recipe.train.epochs,
                learned(row),
                row["seconds"],
                bill(history, recipe),
            )
            if on_epoch is not None:
                on_epoch(epoch + 1, self.model)
            self.model.stop_training = enough(recipe, history)

    return Recorder()
