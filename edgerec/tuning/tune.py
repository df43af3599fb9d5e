"""Search for the best recipe by hyperparameter trials, which are compared on the validation images."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.errors import OutputExistsError, RecipeError, StudyError, unknown
from edgerec.models import reconstructs
from edgerec.models.user_defined import is_user_defined
from edgerec.recipe import Recipe
from edgerec.train.automatic_recipe import resolved
from edgerec.train.backend import prepare
from edgerec.train.leakage import check_leakage
from edgerec.tuning.plan import (
    STUDY_FILE,
    Plan,
    SavedStudy,
    checked_limits,
    checked_objectives,
    checked_pruner,
    checked_timing,
    refuse_other_settings,
)
from edgerec.tuning.results import (
    KEEP,
    PLOT,
    TrialRow,
    TuneReport,
    best_of,
    rows_of,
    run_folder,
    write_results,
)
from edgerec.tuning.search_plots import draw_study
from edgerec.tuning.search_space import Choices, default_space, own_point, read_space
from edgerec.tuning.storage import (
    DATABASE,
    HEARTBEAT_S,
    Storage,
    fail_stale,
    make_pruner,
    make_sampler,
)
from edgerec.tuning.trial import Objective, TimeLimitError
from edgerec.tuning.trial_cost import TIMING_CONDITIONS, Limits, format_value
from edgerec.utils.atomic import checked_output, real_path
from edgerec.utils.lock import Lock
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

# Default number of trials.
TRIALS = 30
# A study ends with an error after this many consecutive refused trials, because otherwise it might never end.
MAX_REFUSED = 30


def tune(
    recipe: Recipe | None,
    out: str | Path,
    *,
    trials: int | None = None,
    max_time_s: float | None = None,
    objectives: Sequence[str] = ("accuracy",),
    limit_ms: float | None = None,
    limit_bytes: int | None = None,
    limit_memory: int | None = None,
    on: str = "this",
    search: str | Path | Mapping[str, Any] | None = None,
    pruner: str | None = None,
    storage: str = "",
    study: str = "",
    keep: str = "best",
    resume: bool = False,
    listener: Listener = ignore,
    heartbeat_s: int = HEARTBEAT_S,
) -> TuneReport:
    """Search for the best recipe, and write it to ``out/best.toml`` whenever a better one is found.

    Trials are compared on the validation images. No trial is evaluated on the test images: the run of the best trial
    remains unfinished in ``out/trials/``, and ``fit(…, resume=True)`` finishes and evaluates it.

    Args:
        recipe: base recipe of all trials. With ``resume``, None continues the study with its own recipe, objectives,
            limits, search space and pruner, and the arguments for them are ignored.
        out: folder of the study.
        trials: end when the study has this many trained trials. None means 30, or no limit if ``max_time_s`` is set.
        max_time_s: end after this many seconds. The running trial is lost.
        objectives: ``accuracy``, optionally together with ``ms``, ``bytes`` and ``memory`` of the int8 model.
        limit_ms: refuse, before training, models whose int8 form needs more milliseconds per image.
        limit_bytes: refuse, before training, models whose int8 .tflite file is larger, in bytes.
        limit_memory: refuse, before training, models whose int8 form needs more bytes for its tensors.
        on: device of the milliseconds: ``this`` machine (measured) or ``rpi`` (estimated for a Raspberry Pi 4).
        search: search space, as the path or the content of a TOML file; None uses
            :func:`edgerec.tuning.search_space.default_space`.
        pruner: ``median``, ``hyperband`` or ``none``. None means ``median`` for one objective, otherwise ``none``.
        storage: URL of a PostgreSQL database that several machines share; empty for an SQLite file in ``out``.
        study: name of the study in the database; empty for the name of the folder.
        keep: trials whose runs are kept: ``best``, ``all`` or ``none``.
        resume: resume the study in ``out``.
        listener: called with the progress.
        heartbeat_s: interval of the heartbeats of a running trial, in seconds. A trial whose last heartbeat is six
            intervals old counts as killed, and its parameters are tried again.

    Raises:
        StudyError: the study has other settings, its database is not reachable, or no trial meets the limits.
        EdgerecError: the recipe, the search space or the data is invalid.
    """
    folder = checked_output(out, data=recipe.data.source if recipe else None, folder=True)
    folder = real_path(folder) if str(out) in (".", "..") else folder
    if keep not in KEEP:
        raise RecipeError(unknown("keep", keep, KEEP))
    end = _End.of(trials, max_time_s)
    # With resume, a machine joins a shared study even if its own folder does not exist yet.
    new = not (folder / STUDY_FILE).exists() and storage and recipe is not None
    saved = SavedStudy.read(folder) if resume and not new else None
    _check_folder_and_storage(folder, saved, storage)
    limits = checked_limits(limit_ms, limit_bytes, limit_memory)
    goal = _Goal(checked_objectives(objectives), limits, checked_timing(on), pruner)
    training_data, plan = _make_plan(recipe, goal, search, saved, listener)
    name = study or (saved.study if saved else real_path(folder).name)
    if saved is not None:
        refuse_other_settings(saved.plan.shared_settings(), plan.shared_settings(), f"study {name!r} in {folder}")
    with Lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with Storage(storage, folder, heartbeat_s) as database:
            parts = {
                "sampler": make_sampler(plan.recipe.seed),
                "pruner": make_pruner(plan.pruner, plan.recipe.train.epochs),
            }
            optuna_study = database.study(name, plan.objectives, plan.shared_settings(), parts)
            if saved is None:
                plan.write(folder, name, database.location if storage else "")
            objective = Objective(plan, folder, training_data.labels, end.at_s, plan.pruner != "none", listener)
            with database.errors_explained():
                _Search(optuna_study, plan, folder, keep).run(end, objective)
                return _report(optuna_study, plan, folder, database.location)


def _make_plan(
    recipe: Recipe | None,
    goal: _Goal,
    search: str | Path | Mapping[str, Any] | None,
    saved: SavedStudy | None,
    listener: Listener,
) -> tuple[_TrainingData, Plan]:
    """Return the training data, and the plan from the arguments, or without a recipe from the saved study.

    The plan has the digest of the current images, so that a change of the data since the study began is detected.
    """
    if recipe is None:
        if saved is None:
            raise RecipeError("There is no recipe: give one, or resume an existing study")
        _refuse_code(saved.plan)
        training_data = _TrainingData.load(saved.plan.recipe, listener)
        return training_data, replace(saved.plan, data_digest=training_data.digest)
    pruner = checked_pruner(goal.pruner, goal.objectives)
    if reconstructs(recipe.model.arch):
        raise RecipeError(
            f"Cannot tune model.arch={recipe.model.arch!r}, because autoencoders have no accuracy: choose a classifier"
        )
    if search is not None:
        read_space(search, recipe)  # report errors in the search space before any image is read
    training_data = _TrainingData.load(recipe, listener)
    resolved_recipe = training_data.recipe
    if search is None:
        space = default_space(resolved_recipe, training_data.train_images)
    else:
        space = read_space(search, resolved_recipe)
    plan = Plan(resolved_recipe, space, goal.objectives, goal.limits, goal.on, pruner, training_data.digest)
    return training_data, plan


def _refuse_code(plan: Plan) -> None:
    """Raise :class:`StudyError` if a study names a Python file as an architecture, because it would be executed."""
    choices = plan.space.get("model.arch")
    names = [plan.recipe.model.arch, *(choices.values if isinstance(choices, Choices) else ())]
    if code := next((str(name) for name in names if is_user_defined(str(name))), None):
        raise StudyError(
            f"The study uses an architecture from a Python file ({code}), which --resume alone does not execute: give "
            "the recipe and --search of the study again, together with --resume"
        )


@dataclass(frozen=True)
class _End:
    """Condition for the end of a study: a number of trained trials, or a monotonic time in seconds."""

    trials: float
    at_s: float

    @classmethod
    def of(cls, trials: int | None, max_time_s: float | None) -> _End:
        for name, value in {"trials": trials, "max-time": max_time_s}.items():
            if value is not None and not value > 0:
                raise RecipeError(f"--{name} is {value:g}, expected more than 0")
        if trials is None:
            trials = TRIALS if max_time_s is None else None
        return cls(trials or math.inf, time.monotonic() + (max_time_s or math.inf))

    def reached(self, rows: Sequence[TrialRow]) -> bool:
        trained = sum(row.state in ("complete", "pruned", "running") for row in rows)
        return trained >= self.trials or time.monotonic() > self.at_s


@dataclass(frozen=True)
class _Goal:
    """Requested objectives, limits, device of the milliseconds, and pruner; None chooses the pruner automatically."""

    objectives: tuple[str, ...]
    limits: Limits
    on: str
    pruner: str | None


@dataclass(frozen=True)
class _TrainingData:
    """Properties of the training data, and the recipe with all automatic values filled in."""

    recipe: Recipe
    labels: tuple[str, ...]
    train_images: int
    digest: str

    @classmethod
    def load(cls, recipe: Recipe, listener: Listener) -> _TrainingData:
        prepare(recipe.train, recipe.seed)
        recipe, dataset, parts = resolved(recipe, listener)
        check_leakage(recipe, dataset, parts)
        return cls(recipe, dataset.labels, len(parts.train), dataset.digest)


class _Search:
    """Runs trials one after the other, logs one line per trial, and updates the study's files after each trial."""

    def __init__(self, study: Any, plan: Plan, folder: Path, keep: str) -> None:
        self._study, self._plan, self._folder, self._keep = study, plan, folder, keep
        self._refused = 0

    def run(self, end: _End, objective: Objective) -> None:
        """Run trials until the end of the study is reached."""
        rows = rows_of(self._study)
        if not rows:
            # The unchanged recipe is the first trial, so that the best trial is never worse than the recipe.
            self._study.enqueue_trial(own_point(self._plan.recipe, self._plan.space), skip_if_exists=True)
        if self._plan.pruner == "none" and len(self._plan.objectives) > 1:
            log.info("trials are not pruned, because pruners support only one objective")
        try:
            while not end.reached(rows):
                self._run_trial(objective)
                fail_stale(self._study)
                rows = rows_of(self._study)
        except TimeLimitError:
            log.info("the time limit has been reached")
        finally:
            write_results(self._folder, self._plan, rows_of(self._study), self._keep)

    def _run_trial(self, objective: Objective) -> None:
        try:
            self._study.optimize(objective, n_trials=1, callbacks=[self._after_trial])
        except ValueError as error:
            if not str(error).startswith("Cannot tell"):  # Optuna's error for a trial that has already ended
                raise
            log.warning("a trial is lost, because its heartbeats stopped for too long and another process ended it")

    def _after_trial(self, study: Any, trial: Any) -> None:
        rows, row = rows_of(study), TrialRow.of(trial)
        log.info("%s", _trial_line(row, best_of(rows, self._plan.objectives)))
        write_results(self._folder, self._plan, rows, self._keep)
        self._refused = self._refused + 1 if row.state == "refused" else 0
        if self._refused >= MAX_REFUSED:
            raise StudyError(
                f"{MAX_REFUSED} trials in a row were refused, the last one because of {row.reason}: "
                "raise the limits, or change the recipe or --search"
            )


def _trial_line(row: TrialRow, best: Sequence[TrialRow]) -> str:
    """Return the log line of a trial: outcome, measured values, parameters, and the best trial so far."""
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


def _check_folder_and_storage(folder: Path, saved: SavedStudy | None, storage: str) -> None:
    """Raise if the folder has other content or a study that is not resumed, or if ``storage`` is not the study's."""
    if saved is not None:
        if storage and not saved.storage:
            raise StudyError(f"The study in {folder} has its database in {DATABASE}: omit --storage")
        if saved.storage and not storage:
            raise StudyError(f"The study in {folder} has its database at {saved.storage}: give --storage again")
    elif (folder / STUDY_FILE).is_file():
        raise OutputExistsError(f"{folder} contains a study: add --resume to resume it, or choose another name")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists, and is not a study: choose another name")


def _report(study: Any, plan: Plan, folder: Path, database_location: str) -> TuneReport:
    rows = rows_of(study)
    best = best_of(rows, plan.objectives)
    if best:
        draw_study(rows, plan, folder / PLOT)
    folders = [run_folder(folder, row.number) for row in best]
    return TuneReport(
        study=study.study_name,
        folder=str(folder),
        storage=database_location,
        objectives=plan.objectives,
        limits=plan.limits.to_dict(),
        on=TIMING_CONDITIONS[plan.on],
        best=best,
        trials=rows,
        picture=str(folder / PLOT) if best else "",
        kept=tuple(str(path) for path in folders if path.is_dir()),
        counts=dict(Counter(row.state for row in rows)),
    )
