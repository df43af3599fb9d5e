"""What came out of a study: its trials, the best recipes, and files with them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec.tuning.plan import OBJECTIVES, Plan
from edgerec.tuning.search_space import applied
from edgerec.tuning.trial_cost import PLACES, shown
from edgerec.utils.atomic import write_file
from edgerec.utils.text import csv_line

TRIALS, BEST, FRONT, TABLE, PICTURE = "trials", "best.toml", "pareto", "trials.csv", "plots/study.png"
KEEP = ("best", "all", "none")
# What a trial leaves in the database beside its values.
ACCURACY, EPOCHS, SECONDS = "accuracy", "epochs", "seconds"
COST, NETWORK = "cost", "network"
REASON, REFUSED = "reason", "refused"


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: in the study, from 0.
        state: ``complete``; ``pruned``: it lagged behind and was stopped; ``refused``: past a limit, or impossible,
            and not trained; ``failed``: its process was stopped or killed; ``running`` or ``waiting``.
        accuracy: the best epoch's on the validation pictures, 0 to 1; of a pruned one as far as it came.
        ms, bytes, memory, macs, parameters: see :class:`~edgerec.tuning.trial_cost.Cost`; None if not measured.
        epochs, seconds: of the training.
        reason: why it has no result, or whose it has.
        params: the recipe's keys that were searched.
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
        """A trial as Optuna has it."""
        kept = trial.user_attrs
        state = {"fail": "failed"}.get(trial.state.name.lower(), trial.state.name.lower())
        if state == "pruned" and kept.get(REFUSED):
            state = "refused"
        cost = {name: kept.get(COST, {}).get(name) for name in ("ms", "bytes", "memory", "macs", "parameters")}
        reason = kept.get(REASON, "")
        if state == "failed":
            reason = reason or "its process was stopped or killed"
        return cls(
            trial.number,
            state,
            kept.get(ACCURACY),
            **cost,
            epochs=kept.get(EPOCHS, 0),
            seconds=kept.get(SECONDS, 0.0),
            reason=reason,
            params=dict(trial.params),
        )

    def figures(self) -> str:
        """What was measured, for people."""
        known = [(name, getattr(self, name)) for name in OBJECTIVES]
        return ", ".join(shown(name, value) for name, value in known if value is not None)


@dataclass(frozen=True)
class TuneReport:
    """A study as it stands.

    Attributes:
        study, folder, storage: its name, its folder, and where its database is (without a password).
        objectives, limits, on: what trials are judged by; ``on`` in words.
        best: the trials that no other beats in all objectives, the most accurate first; of one objective, the one.
        trials: all of them.
        picture: accuracy over the trials and against the costs; empty while there is no result.
        kept: folders of the best trials' runs, whose test pictures nobody has looked at.
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
        """The report as JSON values."""
        rows = {"best": [vars(row) for row in self.best], "trials": [vars(row) for row in self.trials]}
        return vars(self) | {name: list(getattr(self, name)) for name in ("objectives", "kept")} | rows


def rows_of(study: Any) -> tuple[TrialRow, ...]:
    """All trials of Optuna's study."""
    return tuple(TrialRow.of(trial) for trial in study.get_trials(deepcopy=False))


def best_of(rows: Sequence[TrialRow], objectives: Sequence[str]) -> tuple[TrialRow, ...]:
    """Complete trials that no other beats, the most accurate first; of those with equal values the first."""

    def losses(row: TrialRow) -> tuple[float, ...]:
        values = [getattr(row, name) for name in objectives]
        return tuple(-value if name == "accuracy" else value for name, value in zip(objectives, values, strict=True))

    done = {row.number: losses(row) for row in rows if row.state == "complete"}
    first = {values: number for number, values in sorted(done.items(), reverse=True)}
    front = [
        number
        for values, number in first.items()
        if not any(other != values and all(a <= b for a, b in zip(other, values, strict=True)) for other in first)
    ]
    chosen = [row for row in rows if row.number in front]
    return tuple(sorted(chosen, key=lambda row: (-(row.accuracy or 0), row.number)))


def write_results(folder: Path, plan: Plan, rows: Sequence[TrialRow], keep: str) -> None:
    """Bring the study's files up to date: the table, the best recipes, and which trials' runs are kept."""
    write_file(folder / TABLE, _table(plan, rows))
    best = best_of(rows, plan.objectives)
    if best:
        _write_recipe(folder / BEST, plan, best[0])
    if len(plan.objectives) > 1:
        wanted = {folder / FRONT / f"trial-{row.number:05d}.toml": row for row in best}
        for path, row in wanted.items():
            _write_recipe(path, plan, row)
        for path in set((folder / FRONT).glob("trial-" + 5 * "[0-9]" + ".toml")) - set(wanted):
            path.unlink()
    _tidy(folder, rows, {row.number for row in best} if keep == "best" else set(), keep)


def run_folder(folder: Path, number: int) -> Path:
    """Where a trial trains."""
    return folder / TRIALS / str(number)


def _tidy(folder: Path, rows: Sequence[TrialRow], best: set[int], keep: str) -> None:
    for row in rows:
        ended = row.state not in ("running", "waiting")
        path = run_folder(folder, row.number)
        if ended and (path / "recipe.toml").is_file() and row.number not in best and keep != "all":
            shutil.rmtree(path, ignore_errors=True)


def _write_recipe(path: Path, plan: Plan, row: TrialRow) -> None:
    about = f"# Trial {row.number}: {row.figures()} (accuracy on the validation pictures; ms {PLACES[plan.on]}).\n"
    text = about + applied(plan.recipe, row.params).to_toml(comments=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_file(path, text)


def _table(plan: Plan, rows: Sequence[TrialRow]) -> str:
    names = [name for name in TrialRow.__dataclass_fields__ if name not in ("reason", "params")]
    lines = [csv_line([*names, *plan.space, "reason"])]
    for row in rows:
        values = ["" if getattr(row, name) is None else getattr(row, name) for name in names]
        lines.append(csv_line([*values, *(row.params.get(key, "") for key in plan.space), row.reason]))
    return "".join(lines)
