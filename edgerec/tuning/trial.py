"""One trial: a recipe is made, its model's cost measured, and what keeps the limits is trained."""

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


class TimeIsUpError(Exception):
    """The study's time ended while a trial was training."""


class Trials:
    """Runs trials of a plan, one after the other."""

    def __init__(
        self, plan: Plan, folder: Path, labels: tuple[str, ...], ends_s: float, pruning: bool, listener: Listener
    ) -> None:
        """``ends_s`` is the monotonic time when no trial may go on; trials lagging behind stop if ``pruning``."""
        self._plan, self._folder, self._labels = plan, folder, labels
        self._ends_s, self._pruning, self._listener = ends_s, pruning, listener

    def __call__(self, trial: Any) -> tuple[float, ...]:
        """The trial's values; raises Optuna's ``TrialPruned`` where it is refused or stopped."""
        try:
            return self._values(trial)
        except (KeyboardInterrupt, TimeIsUpError) as error:
            trial.set_user_attr(REASON, "the time was up" if isinstance(error, TimeIsUpError) else "it was stopped")
            trial.study.enqueue_trial(trial.params)  # the first one when the study is resumed
            raise

    def _values(self, trial: Any) -> tuple[float, ...]:
        point = suggest(trial, self._plan.space)
        twin = self._twin(trial)
        if twin is not None:
            return self._same(trial, twin)
        try:
            recipe = applied(self._plan.recipe, point)
            cost = self._cost(trial, recipe)
        except TooCostlyError as error:
            trial.set_constraint("bytes", error.excess)
            raise _refused(trial, str(error)) from None
        except EdgerecError as error:
            raise _refused(trial, str(error)) from None
        if broken := self._plan.limits.broken(cost):
            raise _refused(trial, broken)
        accuracy = self._trained(trial, recipe)
        return tuple(accuracy if name == "accuracy" else getattr(cost, name) for name in self._plan.objectives)

    def _twin(self, trial: Any) -> Any:
        """A finished trial with the same values; it would end the same."""
        states = require("optuna").trial.TrialState
        done = trial.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
        return next((other for other in done if other.params == trial.params), None)

    def _same(self, trial: Any, twin: Any) -> tuple[float, ...]:
        for name in (ACCURACY, COST, REFUSED):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        trial.set_user_attr(REASON, f"the same as trial {twin.number}")
        if twin.state.name == "PRUNED":
            raise require("optuna").TrialPruned
        return tuple(twin.values)

    def _cost(self, trial: Any, recipe: Recipe) -> Cost:
        data, model = recipe.data, replace(recipe.model, dropout=0.0)
        network = repr((model, data.input_size, data.channels, data.normalise))
        cost = self._known(trial, network) or self._measured(trial, recipe)
        trial.set_user_attr(NETWORK, network)
        trial.set_user_attr(COST, cost.to_dict())
        for name, part in self._plan.limits.excess(cost).items():
            if name not in trial.constraints:  # one that is tried again has them
                trial.set_constraint(name, part)
        return cost

    def _known(self, trial: Any, network: str) -> Cost | None:
        """What a trial of the same network found, so that one network has one time in a study."""
        others = trial.study.get_trials(deepcopy=False)
        alike = (other for other in others if other.user_attrs.get(NETWORK) == network and COST in other.user_attrs)
        found = next(alike, None)
        return None if found is None else Cost(**found.user_attrs[COST])

    def _measured(self, trial: Any, recipe: Recipe) -> Cost:
        network = recipe.model.arch
        if recipe.data.input_size < (least := least_size_px(network)):
            raise EdgerecError(f"{network} needs at least {least} pixels, got {recipe.data.input_size}")
        self._listener(Progress("measuring", 0, 1, f"trial {trial.number}  {network}"))
        try:
            return measure(recipe, self._labels, self._plan.on, self._plan.limits)
        finally:
            _clear()
            self._listener(Progress("measuring", 1, 1))

    def _trained(self, trial: Any, recipe: Recipe) -> float:
        """The best epoch's accuracy on the validation pictures; the test pictures are not looked at."""
        run = Run.at(run_folder(self._folder, trial.number))
        began_s = time.monotonic()

        def on_epoch(number: int, _: Any) -> None:
            history = run.history()
            if self._pruning:
                trial.report(history[-1]["val_accuracy"], number)
                if number < recipe.train.epochs and trial.should_prune():
                    trial.set_user_attr(REASON, f"it lagged behind after epoch {number}")
                    raise require("optuna").TrialPruned
            if number < recipe.train.epochs and time.monotonic() > self._ends_s:
                raise TimeIsUpError

        try:
            with _quiet():
                fit(recipe, run.path, overwrite=True, finish=False, listener=self._listen(trial), on_epoch=on_epoch)
        except (RecipeError, ModelError) as error:  # values that do not go together
            raise _refused(trial, str(error)) from None
        except TrainError as error:
            trial.set_user_attr(REASON, str(error).partition(":")[0])
            raise require("optuna").TrialPruned from None
        except Exception as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
                raise
            trial.set_user_attr(REASON, "out of memory")
            raise require("optuna").TrialPruned from None
        finally:
            _clear()
            history = run.history() if run.begun else []
            trial.set_user_attr(SECONDS, round(time.monotonic() - began_s, 1))
            trial.set_user_attr(EPOCHS, len(history))
            if history:
                trial.set_user_attr(ACCURACY, _accuracy(history))
        if not history:
            raise _refused(trial, "it had no time for an epoch")
        return _accuracy(history)

    def _listen(self, trial: Any) -> Listener:
        def listen(step: Progress) -> None:
            text = f"trial {trial.number}  {step.text}" if step.stage == "training" else step.text
            self._listener(Progress(step.stage, step.done, step.total, text))

        return listen


def _accuracy(history: list[dict[str, float]]) -> float:
    best = best_epoch(history)
    return next(row["val_accuracy"] for row in history if row["epoch"] == best)


def _refused(trial: Any, reason: str) -> Any:
    """What to raise; the reason is kept with the trial."""
    trial.set_user_attr(REASON, reason)
    trial.set_user_attr(REFUSED, True)
    return require("optuna").TrialPruned(reason)


def _clear() -> None:
    """Give back what Keras keeps of models that are gone."""
    keras().backend.clear_session()
    gc.collect()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for every epoch: a trial has one."""
    logger = logging.getLogger("edgerec.train")
    before = logger.level
    if not logger.isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
