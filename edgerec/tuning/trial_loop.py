"""Run the trials of a study one after another."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.errors import RecipeError, StudyError
from edgerec.tuning.plan import Plan
from edgerec.tuning.results import TrialRow, best_of, rows_of, write_results
from edgerec.tuning.search_space import own_point
from edgerec.tuning.storage import fail_stale
from edgerec.tuning.trial import Objective, TimeLimitError
from edgerec.tuning.trial_cost import format_value

log = logging.getLogger(__name__)

# Default number of trials.
TRIALS = 30
# Number of consecutive trials without training after which a study ends with an error.
MAX_REFUSED = 30


@dataclass(frozen=True)
class StopCondition:
    """Condition that stops a study after a number of trials or at a deadline, whichever is reached first.

    Attributes:
        trials: number of trained trials.
        at_s: deadline on the monotonic clock, in seconds.
    """

    trials: float
    at_s: float

    @classmethod
    def of(cls, trials: int | None, max_time_s: float | None) -> StopCondition:
        """Create a stopping condition.

        If both arguments are None, the study ends after :data:`TRIALS` trials.
        """
        for name, value in {"trials": trials, "max-time": max_time_s}.items():
            if value is not None and not value > 0:
                raise RecipeError(f"--{name} must be greater than 0, got {value:g}")
        if trials is None:
            trials = TRIALS if max_time_s is None else None
        return cls(trials or math.inf, time.monotonic() + (max_time_s or math.inf))

    def reached(self, rows: Sequence[TrialRow]) -> bool:
        """Return whether the study should stop."""
        trained = sum(row.state in ("complete", "pruned", "running") for row in rows)
        return trained >= self.trials or time.monotonic() > self.at_s


class Search:
    """Run the trials of a study, and save the results after each trial."""

    def __init__(self, study: Any, plan: Plan, folder: Path, keep: str) -> None:
        self._study, self._plan, self._folder, self._keep = study, plan, folder, keep
        self._refused = 0

    def run(self, end: StopCondition, objective: Objective) -> None:
        """Run trials until the requested number of trials or the time limit is reached."""
        fail_stale(self._study)
        self._enqueue_recipe()
        rows = rows_of(self._study)
        if self._plan.pruner == "none" and len(self._plan.objectives) > 1:
            log.info("trials are not pruned, because pruners support only one objective")
        try:
            while not end.reached(rows):
                self._run_trial(objective)
                fail_stale(self._study)
                self._enqueue_recipe()
                rows = rows_of(self._study)
        except TimeLimitError:
            log.info("time limit reached")
        finally:
            write_results(self._folder, self._plan, self._study, self._keep)

    def _enqueue_recipe(self) -> None:
        """Enqueue the unchanged recipe unless it was tried, so that the best trial is never worse than the recipe.

        Optuna repeats a killed trial only once, which is not enough for this trial.
        """
        own = own_point(self._plan.recipe, self._plan.space)
        states = []
        for trial in self._study.get_trials(deepcopy=False):
            values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            if all(values.get(key) == value for key, value in own.items()):
                states.append(trial.state.name)
        if any(state != "FAIL" for state in states):
            return
        if states:
            log.warning(
                "the unchanged recipe is tried again, because its trial was killed %d times: if the memory was full, "
                "use a smaller train.batch_size",
                len(states),
            )
        self._study.enqueue_trial(own)

    def _run_trial(self, objective: Objective) -> None:
        try:
            self._study.optimize(objective, n_trials=1, callbacks=[self._after_trial])
        except ValueError as error:
            if not str(error).startswith("Cannot tell"):  # Optuna raises this error if a trial has already ended.
                raise
            log.warning("a result was lost, because another process marked the trial as failed after missed heartbeats")

    def _after_trial(self, study: Any, trial: Any) -> None:
        row = TrialRow.of(trial)
        log.info("%s", _trial_line(row, best_of(study)))
        write_results(self._folder, self._plan, study, self._keep)
        self._refused = self._refused + 1 if row.state == "refused" else 0
        if self._refused >= MAX_REFUSED:
            raise StudyError(
                f"{MAX_REFUSED} consecutive trials were refused, the last one because of {row.reason}: "
                "raise the limits, or change the recipe or --search"
            )


def _trial_line(row: TrialRow, best: Sequence[TrialRow]) -> str:
    parameters = ", ".join(
        f"{key.partition('.')[2] or key} {value:.3g}"
        if isinstance(value, float)
        else f"{key.partition('.')[2]} {value}"
        for key, value in row.params.items()
    )
    outcome = {"complete": "", "pruned": "stopped: ", "refused": "refused: ", "failed": "failed: "}.get(row.state, "")
    result = "; ".join(part for part in (outcome + row.reason, row.figures()) if part)
    if len(best) == 1:
        best_text = f"best: trial {best[0].number}, {format_value('accuracy', best[0].accuracy or 0)}"
    else:
        best_text = f"Pareto front: {', '.join(str(row.number) for row in best)}" if best else "no result yet"
    return f"trial {row.number}  {result}  ({parameters})  {best_text}"
