"""Results of a study: trials, best recipes, and the files that contain them."""

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
# Names of Optuna's user attributes that store the results of a trial.
ACCURACY, EPOCHS, SECONDS = "accuracy", "epochs", "seconds"
COST, NETWORK = "cost", "network"
REASON, REFUSED = "reason", "refused"


@dataclass(frozen=True)
class TrialRow:
    """Result of one trial.

    Attributes:
        number: number of the trial in the study, from 0.
        state: ``complete``, ``pruned`` (stopped early), ``refused`` (not trained, because it exceeds a limit or its
            parameters are invalid), ``failed`` (its process was interrupted or killed), ``running`` or ``waiting``.
        accuracy: validation accuracy of the best epoch, 0 to 1; for pruned trials, of the epochs that were trained.
        ms, bytes, memory, macs, parameters: see :class:`~edgerec.tuning.trial_cost.Cost`; None if not measured.
        epochs, seconds: number of trained epochs, and duration of the training.
        reason: why the trial has no result, or the earlier trial from which its result was copied.
        params: searched keys of the recipe and their values.
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
        """Create the result of one of Optuna's trials."""
        attributes = trial.user_attrs
        state = {"fail": "failed"}.get(trial.state.name.lower(), trial.state.name.lower())
        if state == "pruned" and attributes.get(REFUSED):
            state = "refused"
        cost = {name: attributes.get(COST, {}).get(name) for name in ("ms", "bytes", "memory", "macs", "parameters")}
        reason = attributes.get(REASON, "")
        if state == "failed":
            reason = reason or "its process was interrupted or killed"
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
        """Return the measured values with their units, as one string for display."""
        values = [(name, getattr(self, name)) for name in OBJECTIVES]
        return ", ".join(format_value(name, value) for name, value in values if value is not None)


@dataclass(frozen=True)
class TuneReport:
    """Current state of a study.

    Attributes:
        study, folder, storage: name and folder of the study, and location of its database without a password.
        objectives, limits: objectives and limits of the study.
        on: description of how milliseconds are measured or estimated.
        best: best trial; with several objectives, the Pareto front, the most accurate trial first.
        trials: all trials.
        picture: path of the plot of accuracy over trials and against the costs; empty if there is no result yet.
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
    picture: str
    kept: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        rows = {"best": [vars(row) for row in self.best], "trials": [vars(row) for row in self.trials]}
        return vars(self) | {name: list(getattr(self, name)) for name in ("objectives", "kept")} | rows


def rows_of(study: Any) -> tuple[TrialRow, ...]:
    """Return the results of all trials of Optuna's study."""
    return tuple(TrialRow.of(trial) for trial in study.get_trials(deepcopy=False))


def best_of(rows: Sequence[TrialRow], objectives: Sequence[str]) -> tuple[TrialRow, ...]:
    """Return the Pareto front of the complete trials, the most accurate trial first.

    If several trials have equal values in all objectives, only the first one is returned.
    """

    def losses(row: TrialRow) -> tuple[float, ...]:
        values = [getattr(row, name) for name in objectives]
        return tuple(-value if name == "accuracy" else value for name, value in zip(objectives, values, strict=True))

    complete = {row.number: losses(row) for row in rows if row.state == "complete"}
    first = {values: number for number, values in sorted(complete.items(), reverse=True)}
    front = [
        number
        for values, number in first.items()
        if not any(other != values and all(a <= b for a, b in zip(other, values, strict=True)) for other in first)
    ]
    best = [row for row in rows if row.number in front]
    return tuple(sorted(best, key=lambda row: (-(row.accuracy or 0), row.number)))


def write_results(folder: Path, plan: Plan, rows: Sequence[TrialRow], keep: str) -> None:
    """Update the study's files: the table of trials and the best recipes. Delete runs that ``keep`` does not keep."""
    write_file(folder / TABLE, _table(plan, rows))
    best = best_of(rows, plan.objectives)
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
    """Return the path of a trial's run."""
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
