"""Distillation: a small network learns what several large ones answer, not labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerec.errors import RecipeError
from edgerec.recipe import Recipe
from edgerec.train.distillation import check_same_data
from edgerec.train.fit import fit
from edgerec.train.run import Run
from edgerec.utils.atomic import real_path
from edgerec.utils.progress import Listener, ignore


def distill(
    teachers: Sequence[str | Path],
    student: str,
    out: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> Run:
    """Train a small network on the mean answer of finished runs, by the first one's recipe.

    Args:
        teachers: runs, trained on the same pictures.
        student: its architecture, trained from random weights.
        out: the student's run.
        changes: other keys of the recipe, dotted: ``{"model.width": 0.5, "distill.weight": 0.9}``.
        overwrite: replace a run that is there.
        listener: told of the progress.

    Raises:
        EdgerecError: no such runs, or what :func:`edgerec.fit` raises.
    """
    recipe = student_recipe(teachers, student).override(changes or {}, "changes")
    return fit(recipe, out, overwrite=overwrite, listener=listener)


def student_recipe(teachers: Sequence[str | Path], arch: str) -> Recipe:
    """The recipe of the first teacher for a student of another architecture, from random weights.

    Raises:
        EdgerecError: no finished run there.
        RecipeError: teachers that saw other pictures than the first.
    """
    if not teachers:
        raise RecipeError("a student needs a teacher: name one run or more")
    runs = [Run.open_classifier(path) for path in teachers]
    first = runs[0].recipe
    for run in runs:
        check_same_data(run, first)
    paths = [str(real_path(run.path)) for run in runs]
    if strange := next((path for path in paths if "," in path), None):
        raise RecipeError(f"the run {strange} has a comma in its path, which separates teachers: rename it")
    model = replace(first.model, arch=arch, width=0.0, dropout=0.0, weights="none")
    return replace(first, model=model, distill=replace(first.distill, teachers=",".join(paths)))
