"""Search for the best hyperparameters of a recipe."""

from __future__ import annotations

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
    TuneReport,
    best_of,
    rows_of,
    run_folder,
)
from edgerec.tuning.search_plots import draw_study
from edgerec.tuning.search_space import Choices, default_space, read_space
from edgerec.tuning.storage import (
    DATABASE,
    HEARTBEAT_S,
    Storage,
    fail_running,
    make_pruner,
    make_sampler,
)
from edgerec.tuning.trial import Objective
from edgerec.tuning.trial_cost import TIMING_CONDITIONS, Limits
from edgerec.tuning.trial_loop import Search, StopCondition
from edgerec.utils.atomic import checked_output, real_path
from edgerec.utils.lock import Lock
from edgerec.utils.progress import Listener, ignore


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
    """Search for the best recipe, and save it as ``out/best.toml``.

    The file is updated whenever a better recipe is found. Trials are compared on the validation images. No trial is
    evaluated on the test images. The run of the best trial remains unfinished in ``out/trials/``. To finish and
    evaluate this run, call ``fit(…, resume=True)``.

    Args:
        recipe: base recipe of all trials. With ``resume``, None continues the study with its own recipe, objectives,
            limits, search space and pruner, and the arguments for them are ignored.
        out: folder of the study.
        trials: stop when the study has this many trained trials. None means 30, or no limit if ``max_time_s`` is set.
        max_time_s: stop after this many seconds. The running trial is discarded.
        objectives: ``accuracy``, optionally together with ``ms``, ``bytes`` and ``memory`` of the int8 model.
        limit_ms: maximum latency of the int8 model, in milliseconds per image. Models that exceed a limit are not
            trained.
        limit_bytes: maximum size of the int8 .tflite file, in bytes.
        limit_memory: maximum memory for the tensors of the int8 model, in bytes.
        on: device whose latency counts: ``this`` machine (measured) or ``rpi`` (estimated for a Raspberry Pi 4).
        search: search space, as the path or the content of a TOML file. None uses
            :func:`edgerec.tuning.search_space.default_space`.
        pruner: ``median``, ``hyperband`` or ``none``. None means ``median`` for one objective, otherwise ``none``.
        storage: URL of a PostgreSQL database that several machines share, or an empty string for an SQLite file in
            ``out``.
        study: name of the study in the database, or an empty string for the name of the folder.
        keep: trials whose runs are kept: ``best``, ``all`` or ``none``.
        resume: resume the study in ``out``.
        listener: called with the progress.
        heartbeat_s: interval of the heartbeats of a running trial, in seconds. In a shared study, a trial whose last
            heartbeat is six intervals old counts as killed, and its parameters are tried again.

    Raises:
        StudyError: the study has other settings, the database is not reachable, or no trial meets the limits.
        EdgerecError: the recipe, the search space or the data is invalid.
    """
    folder = checked_output(out, data=recipe.data.source if recipe else None, folder=True)
    folder = real_path(folder) if str(out) in (".", "..") else folder
    if keep not in KEEP:
        raise RecipeError(unknown("keep", keep, KEEP))
    end = StopCondition.of(trials, max_time_s)
    # A machine that joins a shared study with resume=True may not have a study folder yet.
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
                if not storage:  # the lock on the folder excludes other processes, so running trials were killed
                    fail_running(optuna_study)
                Search(optuna_study, plan, folder, keep).run(end, objective)
                return _report(optuna_study, plan, folder, database.location)


def _make_plan(
    recipe: Recipe | None,
    goal: _Goal,
    search: str | Path | Mapping[str, Any] | None,
    saved: SavedStudy | None,
    listener: Listener,
) -> tuple[_TrainingData, Plan]:
    if recipe is None:
        if saved is None:
            raise RecipeError("The recipe is missing: pass a recipe, or set resume=True to resume an existing study")
        _refuse_user_defined_architecture(saved.plan)
        training_data = _TrainingData.load(saved.plan.recipe, listener)
        # The digest of the current images shows whether the data has changed since the study was created.
        return training_data, replace(saved.plan, data_digest=training_data.digest)
    pruner = checked_pruner(goal.pruner, goal.objectives)
    if reconstructs(recipe.model.arch):
        raise RecipeError(
            f"Cannot tune model.arch={recipe.model.arch!r}, because autoencoders have no accuracy: choose a classifier"
        )
    if search is not None:
        read_space(search, recipe)  # Errors in the search space are reported before images are read.
    training_data = _TrainingData.load(recipe, listener)
    resolved_recipe = training_data.recipe
    if search is None:
        space = default_space(resolved_recipe, training_data.train_images)
    else:
        space = read_space(search, resolved_recipe)
    plan = Plan(resolved_recipe, space, goal.objectives, goal.limits, goal.on, pruner, training_data.digest)
    return training_data, plan


def _refuse_user_defined_architecture(plan: Plan) -> None:
    choices = plan.space.get("model.arch")
    names = [plan.recipe.model.arch, *(choices.values if isinstance(choices, Choices) else ())]
    if code := next((str(name) for name in names if is_user_defined(str(name))), None):
        raise StudyError(
            f"The study's architecture is defined in {code}, a Python file that --resume does not run for safety: "
            "pass the study's recipe and --search again, together with --resume"
        )


@dataclass(frozen=True)
class _Goal:
    objectives: tuple[str, ...]
    limits: Limits
    on: str
    pruner: str | None


@dataclass(frozen=True)
class _TrainingData:
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


def _check_folder_and_storage(folder: Path, saved: SavedStudy | None, storage: str) -> None:
    if saved is not None:
        if storage and not saved.storage:
            raise StudyError(f"The study in {folder} uses its own database {DATABASE}: omit --storage")
        if saved.storage and not storage:
            raise StudyError(f"The study in {folder} uses the database {saved.storage}: add --storage")
    elif (folder / STUDY_FILE).is_file():
        raise OutputExistsError(f"{folder} already contains a study: add --resume, or choose another name")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists but is not a study: choose another name")


def _report(study: Any, plan: Plan, folder: Path, database_location: str) -> TuneReport:
    rows, best = rows_of(study), best_of(study)
    if best:
        draw_study(rows, best, plan, folder / PLOT)
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
        plot=str(folder / PLOT) if best else "",
        kept=tuple(str(path) for path in folders if path.is_dir()),
        counts=dict(Counter(row.state for row in rows)),
    )
