"""Searching for the best recipe: trials until there are enough, each judged on the validation pictures alone."""

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
from edgerec.models.own import is_own
from edgerec.recipe import Recipe
from edgerec.train.backend import prepare
from edgerec.train.fit import resolved
from edgerec.train.leakage import check_exposure
from edgerec.tuning.plan import (
    ABOUT,
    Kept,
    Plan,
    checked_limits,
    checked_objectives,
    checked_place,
    checked_pruner,
    refuse_other,
)
from edgerec.tuning.results import (
    KEEP,
    PICTURE,
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
from edgerec.tuning.trial import TimeIsUpError, Trials
from edgerec.tuning.trial_cost import PLACES, Limits, shown
from edgerec.utils.atomic import checked_output, real_path
from edgerec.utils.lock import Lock
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

TRIALS = 30
# So many trials in a row that could not be trained end a study: it would go on for ever.
MOST_REFUSED = 30


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

    Trials are judged on the validation pictures. Nobody looks at the held-out pictures: the best trial's run is left
    in ``out/trials/`` unfinished, and ``fit(…, resume=True)`` finishes it.

    Args:
        recipe: what trials begin with; None with ``resume``: the study's own plan, and what follows here up to
            ``pruner`` is taken from it too.
        out: the study's folder.
        trials: end with so many in the study that were trained; None: 30, or no end with ``max_time_s``.
        max_time_s: end after so long; the running trial is lost.
        objectives: ``accuracy``, and perhaps ``ms``, ``bytes`` and ``memory`` of the int8 model.
        limit_ms: refuse a slower model before it is trained; of the int8 model, as the following.
        limit_bytes: refuse a larger file.
        limit_memory: refuse what needs more bytes for its tensors, beside the file.
        on: where milliseconds are of: ``this`` machine, measured, or ``rpi``, estimated.
        search: a TOML file, or what it holds, with the keys to search; None: see ``tuning/space.py``.
        pruner: ``median``, ``hyperband`` or ``none``; None: median, for several objectives none.
        storage: address of a PostgreSQL database that several machines share; empty: a file in ``out``.
        study: its name in the database; empty: the folder's name.
        keep: the runs of which trials are kept: ``best``, ``all`` or ``none``.
        resume: go on with the study in ``out``.
        listener: told of the progress.
        heartbeat_s: how often a running trial gives a sign of life; after six of silence it is tried again.

    Raises:
        StudyError: the study was made for something else, its database does not answer, or nothing keeps the limits.
        EdgerecError: the recipe, the search or the data do not allow it.
    """
    folder = checked_output(out, data=recipe.data.source if recipe else None, folder=True)
    folder = real_path(folder) if str(out) in (".", "..") else folder
    if keep not in KEEP:
        raise RecipeError(unknown("keep", keep, KEEP))
    end = _End.of(trials, max_time_s)
    # A machine that joins a shared study may be new, or come back to what it left.
    new = not (folder / ABOUT).exists() and storage and recipe is not None
    kept = Kept.read(folder) if resume and not new else None
    _refuse(folder, kept, storage)
    limits = checked_limits(limit_ms, limit_bytes, limit_memory)
    goal = _Goal(checked_objectives(objectives), limits, checked_place(on), pruner)
    subject, plan = _planned(recipe, goal, search, kept, listener)
    name = study or (kept.study if kept else real_path(folder).name)
    if kept is not None:
        refuse_other(kept.plan.fixed(), plan.fixed(), f"study {name!r} in {folder}")
    with Lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with Storage(storage, folder, heartbeat_s) as database:
            parts = {
                "sampler": make_sampler(plan.recipe.seed),
                "pruner": make_pruner(plan.pruner, plan.recipe.train.epochs),
            }
            shared = database.study(name, plan.objectives, plan.fixed(), parts)
            if kept is None:
                plan.write(folder, name, database.where if storage else "")
            run = Trials(plan, folder, subject.labels, end.at_s, plan.pruner != "none", listener)
            with database.explained():
                _Search(shared, plan, folder, keep).until(end, run)
                return _report(shared, plan, folder, database.where)


def _planned(
    recipe: Recipe | None,
    goal: _Goal,
    search: str | Path | Mapping[str, Any] | None,
    kept: Kept | None,
    listener: Listener,
) -> tuple[_Subject, Plan]:
    """The plan: of what is given, or without a recipe that of the folder, for the pictures as they are now."""
    if recipe is None:
        if kept is None:
            raise RecipeError("there is no recipe: only with resume a study brings its own")
        _refuse_code(kept.plan)
        subject = _Subject.of(kept.plan.recipe, listener)
        return subject, replace(kept.plan, data_digest=subject.digest)
    pruner = checked_pruner(goal.pruner, goal.objectives)
    if reconstructs(recipe.model.arch):
        raise RecipeError(f"model.arch is {recipe.model.arch!r}, which has no accuracy to search for")
    if search is not None:
        read_space(search, recipe)  # before any picture is read
    subject = _Subject.of(recipe, listener)
    own = subject.recipe
    space = default_space(own, subject.train_images) if search is None else read_space(search, own)
    return subject, Plan(own, space, goal.objectives, goal.limits, goal.on, pruner, subject.digest)


def _refuse_code(plan: Plan) -> None:
    """Raise :class:`StudyError` if a study names a Python file as an architecture, because it would be executed."""
    choices = plan.space.get("model.arch")
    names = [plan.recipe.model.arch, *(choices.values if isinstance(choices, Choices) else ())]
    if code := next((str(name) for name in names if is_own(str(name))), None):
        raise StudyError(
            f"the study names code ({code}), which --resume alone does not execute: give the recipe and --search of "
            "the study again, together with --resume"
        )


@dataclass(frozen=True)
class _End:
    """When a study has enough: so many trials that were trained, or a monotonic time."""

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
    """What trials are judged by, as it was asked for; ``pruner`` None: what suits the objectives."""

    objectives: tuple[str, ...]
    limits: Limits
    on: str
    pruner: str | None


@dataclass(frozen=True)
class _Subject:
    """The recipe, complete, and what its pictures say."""

    recipe: Recipe
    labels: tuple[str, ...]
    train_images: int
    digest: str

    @classmethod
    def of(cls, recipe: Recipe, listener: Listener) -> _Subject:
        prepare(recipe.train, recipe.seed)
        recipe, dataset, parts = resolved(recipe, listener)
        check_exposure(recipe, dataset, parts)
        return cls(recipe, dataset.labels, len(parts.train), dataset.digest)


class _Search:
    """Trial after trial, each told in a line; the files are true after each of them."""

    def __init__(self, study: Any, plan: Plan, folder: Path, keep: str) -> None:
        self._study, self._plan, self._folder, self._keep = study, plan, folder, keep
        self._refused = 0

    def until(self, end: _End, run: Trials) -> None:
        rows = rows_of(self._study)
        if not rows:
            # The recipe as it is comes first: the best is never worse than that.
            self._study.enqueue_trial(own_point(self._plan.recipe, self._plan.space), skip_if_exists=True)
        if self._plan.pruner == "none" and len(self._plan.objectives) > 1:
            log.info("trials are not pruned: a pruner compares one number, and there are several objectives")
        try:
            while not end.reached(rows):
                self._one(run)
                fail_stale(self._study)
                rows = rows_of(self._study)
        except TimeIsUpError:
            log.info("the time is up")
        finally:
            write_results(self._folder, self._plan, rows_of(self._study), self._keep)

    def _one(self, run: Trials) -> None:
        try:
            self._study.optimize(run, n_trials=1, callbacks=[self._after])
        except ValueError as error:
            if not str(error).startswith("Cannot tell"):  # what Optuna says of a trial that has ended
                raise
            log.warning("a trial is lost: it gave no sign of life for too long, and another process gave it up")

    def _after(self, study: Any, trial: Any) -> None:
        rows, row = rows_of(study), TrialRow.of(trial)
        log.info("%s", _line(row, best_of(rows, self._plan.objectives)))
        write_results(self._folder, self._plan, rows, self._keep)
        self._refused = self._refused + 1 if row.state == "refused" else 0
        if self._refused >= MOST_REFUSED:
            raise StudyError(
                f"{MOST_REFUSED} trials in a row were refused, the last because of {row.reason}: "
                "raise the limits, or change the recipe or --search"
            )


def _line(row: TrialRow, best: Sequence[TrialRow]) -> str:
    """A trial for people: what came of it, with what, and the best so far."""
    chosen = ", ".join(
        f"{key.partition('.')[2] or key} {value:.3g}"
        if isinstance(value, float)
        else f"{key.partition('.')[2]} {value}"
        for key, value in row.params.items()
    )
    outcome = {"complete": "", "pruned": "stopped: ", "refused": "refused: ", "failed": "failed: "}.get(row.state, "")
    told = "; ".join(part for part in (outcome + row.reason, row.figures()) if part)
    if len(best) == 1:
        so_far = f"best: trial {best[0].number}, {shown('accuracy', best[0].accuracy or 0)}"
    else:
        so_far = f"unbeaten: {', '.join(str(one.number) for one in best)}" if best else "none yet"
    return f"trial {row.number}  {told}  ({chosen})  {so_far}"


def _refuse(folder: Path, kept: Kept | None, storage: str) -> None:
    """Raise where the folder, and where the study's database is, are not what is asked for."""
    if kept is not None:
        if storage and not kept.storage:
            raise StudyError(f"{folder} has its study in {DATABASE}: leave --storage out")
        if kept.storage and not storage:
            raise StudyError(f"{folder} has its study in {kept.storage}: give it again with --storage")
    elif (folder / ABOUT).is_file():
        raise OutputExistsError(f"{folder} holds a study: add --resume to go on, or choose another name")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} holds something else: choose another name")


def _report(study: Any, plan: Plan, folder: Path, where: str) -> TuneReport:
    rows = rows_of(study)
    best = best_of(rows, plan.objectives)
    if best:
        draw_study(rows, plan, folder / PICTURE)
    folders = [run_folder(folder, row.number) for row in best]
    return TuneReport(
        study=study.study_name,
        folder=str(folder),
        storage=where,
        objectives=plan.objectives,
        limits=plan.limits.given(),
        on=PLACES[plan.on],
        best=best,
        trials=rows,
        picture=str(folder / PICTURE) if best else "",
        kept=tuple(str(path) for path in folders if path.is_dir()),
        counts=dict(Counter(row.state for row in rows)),
    )
