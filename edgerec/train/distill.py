"""Knowledge distillation: train a small network (student) on the labels and on the outputs of teacher models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerec.errors import RecipeError
from edgerec.recipe import Recipe
from edgerec.train.distillation_loss import check_same_data
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
    """Train a small network (student) on the mean outputs of finished runs (teachers).

    Args:
        teachers: folders of finished runs trained on the same images.
        student: the student's architecture. The student is trained from random weights with the first teacher's recipe.
        out: output folder for the student's run.
        changes: recipe keys to change, such as ``{"model.width": 0.5, "distill.weight": 0.9}``.
        overwrite: replace an existing run.
        listener: receives the progress.

    Returns:
        The student's run.

    Raises:
        EdgerecError: a teacher is not a finished run, or :func:`edgerec.fit` fails.
    """
    recipe = student_recipe(teachers, student).override(changes or {}, "changes")
    return fit(recipe, out, overwrite=overwrite, listener=listener)


def student_recipe(teachers: Sequence[str | Path], arch: str) -> Recipe:
    """Return a copy of the first teacher's recipe with the student's architecture.

    The student starts from random weights.

    Raises:
        EdgerecError: a teacher is not a finished classifier run.
        RecipeError: the teachers differ in their images, preprocessing or split, or there is no teacher.
    """
    if not teachers:
        raise RecipeError("distillation requires at least one teacher: pass one or more finished runs")
    runs = [Run.open_classifier(path) for path in teachers]
    first = runs[0].recipe
    for run in runs:
        check_same_data(run, first)
    paths = [str(real_path(run.path)) for run in runs]
    if invalid := next((path for path in paths if "," in path), None):
        raise RecipeError(
            f"Cannot use the run {invalid} as a teacher, because its path contains a comma, which separates the paths "
            "in distill.teachers: rename the folder"
        )
    model = replace(first.model, arch=arch, width=0.0, dropout=0.0, weights="none")
    return replace(first, model=model, distill=replace(first.distill, teachers=",".join(paths)))
