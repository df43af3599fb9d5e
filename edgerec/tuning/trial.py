"""Run one trial: choose parameters, measure the model's cost, and train the model if it meets the limits."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerec.errors import EdgerecError, ModelError, RecipeError, TrainError
from edgerec.models import least_size_px
from edgerec.recipe import Recipe
from edgerec.train.backend import keras
from edgerec.train.fit import fit
from edgerec.train.run import Run, best_epoch
from edgerec.tuning.plan import Plan
from edgerec.tuning.results import ACCURACY, COST, EPOCHS, NETWORK, REASON, REFUSED, SECONDS, run_folder
from edgerec.tuning.search_space import applied, suggest
from edgerec.tuning.trial_cost import Cost, TooCostlyError, measure
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, Progress


class TimeLimitError(Exception):
    """Raised when the study's time limit is reached during a trial."""


class Objective:
    """Optuna objective function that runs one trial per call."""

    def __init__(
        self, plan: Plan, folder: Path, labels: tuple[str, ...], ends_s: float, pruning: bool, listener: Listener
    ) -> None:
        """Create the objective function.

        Args:
            plan: settings of the study.
            folder: folder of the study.
            labels: label of each class.
            ends_s: deadline on the monotonic clock in seconds, at which a running trial is stopped.
            pruning: whether the study's pruner may stop trials early.
            listener: called with the progress.
        """
        self._plan, self._folder, self._labels = plan, folder, labels
        self._ends_s, self._pruning, self._listener = ends_s, pruning, listener

    def __call__(self, trial: Any) -> tuple[float, ...]:
        """Run a trial and return its objective values.

        Raises:
            TrialPruned: the model exceeds a limit, the parameters are invalid, or the pruner stopped the trial.
        """
        try:
            return self._values(trial)
        except (KeyboardInterrupt, TimeLimitError) as error:
            timed_out = isinstance(error, TimeLimitError)
            trial.set_user_attr(REASON, "time limit of the study reached" if timed_out else "interrupted")
            # The interrupted trial is repeated first when the study is resumed.
            trial.study.enqueue_trial(trial.params)
            raise

    def _values(self, trial: Any) -> tuple[float, ...]:
        point = suggest(trial, self._plan.space)
        duplicate = self._finished_duplicate(trial)
        if duplicate is not None:
            return self._copy_results(trial, duplicate)
        try:
            recipe = applied(self._plan.recipe, point)
            cost = self._measure_and_store_cost(trial, recipe)
        except TooCostlyError as error:
            trial.set_constraint("bytes", error.excess)
            raise _refusal(trial, str(error)) from None
        except EdgerecError as error:
            raise _refusal(trial, str(error)) from None
        if exceeded := self._plan.limits.exceeded(cost):
            raise _refusal(trial, exceeded)
        accuracy = self._train(trial, recipe)
        return tuple(accuracy if name == "accuracy" else getattr(cost, name) for name in self._plan.objectives)

    def _finished_duplicate(self, trial: Any) -> Any:
        states = require("optuna").trial.TrialState
        finished = trial.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
        return next((other for other in finished if other.params == trial.params), None)

    def _copy_results(self, trial: Any, duplicate: Any) -> tuple[float, ...]:
        for name in (ACCURACY, COST, REFUSED):
            if name in duplicate.user_attrs:
                trial.set_user_attr(name, duplicate.user_attrs[name])
        trial.set_user_attr(REASON, f"same parameters as trial {duplicate.number}")
        if duplicate.state.name == "PRUNED":
            raise require("optuna").TrialPruned
        return tuple(duplicate.values)

    def _measure_and_store_cost(self, trial: Any, recipe: Recipe) -> Cost:
        data, model = recipe.data, replace(recipe.model, dropout=0.0)
        network = repr((model, data.input_size, data.channels, data.normalize))
        cost = self._stored_cost(trial, network) or self._measure(trial, recipe)
        trial.set_user_attr(NETWORK, network)
        trial.set_user_attr(COST, cost.to_dict())
        for name, excess in self._plan.limits.excess(cost).items():
            if name not in trial.constraints:  # A repeated trial already has its constraints.
                trial.set_constraint(name, excess)
        return cost

    def _stored_cost(self, trial: Any, network: str) -> Cost | None:
        """Trials with the same network share one measured cost, so that they differ only in accuracy."""
        for other in trial.study.get_trials(deepcopy=False):
            if other.user_attrs.get(NETWORK) == network and COST in other.user_attrs:
                return Cost(**other.user_attrs[COST])
        return None

    def _measure(self, trial: Any, recipe: Recipe) -> Cost:
        network = recipe.model.arch
        if recipe.data.input_size < (least := least_size_px(network)):
            raise EdgerecError(f"{network} needs an input size of at least {least}, got {recipe.data.input_size}")
        self._listener(Progress("measuring", 0, 1, f"trial {trial.number}  {network}"))
        try:
            return measure(recipe, self._labels, self._plan.on, self._plan.limits)
        finally:
            _free_keras_memory()
            self._listener(Progress("measuring", 1, 1))

    def _train(self, trial: Any, recipe: Recipe) -> float:
        """Train the model, and return the validation accuracy of the best epoch."""
        run = Run.at(run_folder(self._folder, trial.number))
        began_s = time.monotonic()

        def on_epoch(number: int, _: Any) -> None:
            history = run.history()
            if self._pruning:
                trial.report(history[-1]["val_accuracy"], number)
                if number < recipe.train.epochs and trial.should_prune():
                    trial.set_user_attr(REASON, f"stopped by the pruner after epoch {number}")
                    raise require("optuna").TrialPruned
            if number < recipe.train.epochs and time.monotonic() > self._ends_s:
                raise TimeLimitError

        try:
            with _without_epoch_log():
                fit(
                    recipe,
                    run.path,
                    overwrite=True,
                    finish=False,
                    listener=self._trial_listener(trial),
                    on_epoch=on_epoch,
                )
        except (RecipeError, ModelError) as error:
            raise _refusal(trial, str(error)) from None
        except TrainError as error:
            trial.set_user_attr(REASON, str(error).partition(":")[0])
            raise require("optuna").TrialPruned from None
        except Exception as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
                raise
            trial.set_user_attr(REASON, "out of memory")
            raise require("optuna").TrialPruned from None
        finally:
            _free_keras_memory()
            history = run.history() if run.begun else []
            trial.set_user_attr(SECONDS, round(time.monotonic() - began_s, 1))
            trial.set_user_attr(EPOCHS, len(history))
            if history:
                trial.set_user_attr(ACCURACY, _accuracy(history))
        if not history:
            raise _refusal(trial, "the training stopped before the end of the first epoch")
        return _accuracy(history)

    def _trial_listener(self, trial: Any) -> Listener:
        def listen(step: Progress) -> None:
            text = f"trial {trial.number}  {step.text}" if step.stage == "training" else step.text
            self._listener(Progress(step.stage, step.done, step.total, text))

        return listen


def _accuracy(history: list[dict[str, float]]) -> float:
    best = best_epoch(history)
    return next(row["val_accuracy"] for row in history if row["epoch"] == best)


def _refusal(trial: Any, reason: str) -> Any:
    trial.set_user_attr(REASON, reason)
    trial.set_user_attr(REFUSED, True)
    return require("optuna").TrialPruned(reason)


def _free_keras_memory() -> None:
    keras().backend.clear_session()
    gc.collect()


@contextmanager
def _without_epoch_log() -> Iterator[None]:
    """Suppress the per-epoch log lines, because the study logs one line per trial."""
    logger = logging.getLogger("edgerec.train")
    previous_level = logger.level
    if not logger.isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(previous_level)
