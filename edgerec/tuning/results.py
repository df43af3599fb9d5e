"""Collect and save the results of a study.

Optuna's ``trials_dataframe`` is not used for ``trials.csv``, because it needs pandas, and because the costs of a model
would be in one column.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec.tuning.plan import OBJECTIVES, Plan
from edgerec.tuning.search_space import applied
from edgerec.tuning.trial_cost import TIMING_CONDITIONS, format_value
from edgerec.utils.atomic import write_file
from edgerec.utils.text import csv_line

TRIALS, BEST, FRONT, TABLE, PLOT = "trials", "best.toml", "pareto", "trials.csv", "plots/study.png"
KEEP = ("best", "all", "none")
# Optuna user attributes that store a trial's results.
ACCURACY, EPOCHS, SECONDS = "accuracy", "epochs", "seconds"
COST, NETWORK = "cost", "network"
REASON, REFUSED = "reason", "refused"


@dataclass(frozen=True)
class TrialRow:
    """Result of one trial.

    Attributes:
        number: number of the trial in the study, from 0.
        state: ``complete``, ``pruned`` (stopped early), ``refused`` (not trained, because the model exceeds a limit or
            the parameters are invalid), ``failed`` (the process was interrupted or killed), ``running`` or ``waiting``.
        accuracy: validation accuracy of the best trained epoch, 0 to 1, or None if no epoch was trained.
        ms, bytes, memory, macs, parameters: see :class:`~edgerec.tuning.trial_cost.Cost`. None if not measured.
        epochs, seconds: number of trained epochs, and duration of the training.
        reason: reason for which the trial has no result, or the earlier trial from which the result was copied.
        params: maps the searched keys of the recipe to their values.
    """

    number: int
    state: str
    accuracy: float | None
    ms: float | None
    bytes: int | None
    memory: int | None
    macs: int | None
    parameters: int | None
    epochs: int
    seconds: float
    reason: str
    params: dict[str, Any]

    @classmethod
    def of(cls, trial: Any) -> TrialRow:
        """Collect the results of an Optuna trial."""
        attributes = trial.user_attrs
        state = {"fail": "failed"}.get(trial.state.name.lower(), trial.state.name.lower())
        if state == "pruned" and attributes.get(REFUSED):
            state = "refused"
        cost = {name: attributes.get(COST, {}).get(name) for name in ("ms", "bytes", "memory", "macs", "parameters")}
        reason = attributes.get(REASON, "")
        if state == "failed":
            reason = reason or "the process was interrupted or killed"
        return cls(
            trial.number,
            state,
            attributes.get(ACCURACY),
            **cost,
            epochs=attributes.get(EPOCHS, 0),
            seconds=attributes.get(SECONDS, 0.0),
            reason=reason,
            params=dict(trial.params),
        )

    def figures(self) -> str:
        """Return the measured values and their units as a string."""
        values = [(name, getattr(self, name)) for name in OBJECTIVES]
        return ", ".join(format_value(name, value) for name, value in values if value is not None)


@dataclass(frozen=True)
class TuneReport:
    """Current results of a study.

    Attributes:
        study, folder, storage: name and folder of the study, and location of the database without a password.
        objectives, limits: objectives and limits of the study.
        on: description of how milliseconds are measured or estimated.
        best: the best trial. With several objectives, the trials on the Pareto front, the most accurate trial first.
        trials: all trials.
        plot: path of the plot of accuracy over trials and against the costs, or an empty string without results.
        kept: folders of the best trials' runs, which are not yet evaluated on the test images.
        counts: number of trials by state.
    """

    study: str
    folder: str
    storage: str
    objectives: tuple[str, ...]
    limits: dict[str, float]
    on: str
    best: tuple[TrialRow, ...]
    trials: tuple[TrialRow, ...]
    plot: str
    kept: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        rows = {"best": [vars(row) for row in self.best], "trials": [vars(row) for row in self.trials]}
        return vars(self) | {name: list(getattr(self, name)) for name in ("objectives", "kept")} | rows


def rows_of(study: Any) -> tuple[TrialRow, ...]:
    """Return the results of all trials of an Optuna study."""
    return tuple(TrialRow.of(trial) for trial in study.get_trials(deepcopy=False))


def best_of(study: Any) -> tuple[TrialRow, ...]:
    """Return the Pareto-optimal trials of an Optuna study, most accurate first.

    If several trials have equal values of all objectives, only the first trial is returned.
    """
    first = {tuple(trial.values): trial for trial in reversed(study.best_trials)}
    rows = [TrialRow.of(trial) for trial in first.values()]
    return tuple(sorted(rows, key=lambda row: (-(row.accuracy or 0), row.number)))


def write_results(folder: Path, plan: Plan, study: Any, keep: str) -> None:
    """Save the trial table and the best recipes, and delete the runs that are no longer needed.

    Args:
        folder: folder of the study.
        plan: settings of the study.
        study: Optuna's study.
        keep: trials whose runs are kept, a name from :data:`KEEP`.
    """
    rows, best = rows_of(study), best_of(study)
    write_file(folder / TABLE, _table(plan, rows))
    if best:
        _write_recipe(folder / BEST, plan, best[0])
    if len(plan.objectives) > 1:
        recipes = {folder / FRONT / f"trial-{row.number:05d}.toml": row for row in best}
        for path, row in recipes.items():
            _write_recipe(path, plan, row)
        for path in set((folder / FRONT).glob("trial-" + 5 * "[0-9]" + ".toml")) - set(recipes):
            path.unlink()
    _delete_runs(folder, rows, {row.number for row in best} if keep == "best" else set(), keep)


def run_folder(folder: Path, number: int) -> Path:
    """Return the path of a trial's run folder."""
    return folder / TRIALS / str(number)


def _delete_runs(folder: Path, rows: Sequence[TrialRow], best: set[int], keep: str) -> None:
    for row in rows:
        ended = row.state not in ("running", "waiting")
        path = run_folder(folder, row.number)
        if ended and (path / "recipe.toml").is_file() and row.number not in best and keep != "all":
            shutil.rmtree(path, ignore_errors=True)


def _write_recipe(path: Path, plan: Plan, row: TrialRow) -> None:
    conditions = f"accuracy on the validation images; ms {TIMING_CONDITIONS[plan.on]}"
    comment = f"# Trial {row.number}: {row.figures()} ({conditions}).\n"
    text = comment + applied(plan.recipe, row.params).to_toml(comments=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_file(path, text)


def _table(plan: Plan, rows: Sequence[TrialRow]) -> str:
    names = [name for name in TrialRow.__dataclass_fields__ if name not in ("reason", "params")]
    lines = [csv_line([*names, *plan.space, "reason"])]
    for row in rows:
        values = ["" if getattr(row, name) is None else getattr(row, name) for name in names]
        lines.append(csv_line([*values, *(row.params.get(key, "") for key in plan.space), row.reason]))
    return "".join(lines)
