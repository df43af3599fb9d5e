"""Implement the ``edgerec distill`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, progress
from edgerec.cli.recipe_options import SET_HELP
from edgerec.cli.train import resume_hint, show_run


def distill(
    teacher: list[Path] = typer.Option(
        ...,
        "--teacher",
        metavar="RUN",
        help="The teacher's finished run. May be repeated. The student then learns the mean output of all teachers.",
    ),
    student: str = typer.Option(
        ..., metavar="NAME", help="The student's architecture: a name listed by 'edgerec models'."
    ),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Output folder for the student's run."),
    width: float | None = typer.Option(
        None, metavar="FACTOR", help="The student's width multiplier. [default: the first teacher's]"
    ),
    epochs: int | None = typer.Option(
        None, metavar="N", min=1, help="Number of training epochs. [default: the same as for the first teacher]"
    ),
    weight: float | None = typer.Option(
        None,
        metavar="FRACTION",
        help="Weight of the distillation loss, from 0 to 1. The loss on the true labels is weighted with 1 - FRACTION. "
        "[default: 0.7]",
    ),
    temperature: float | None = typer.Option(
        None, metavar="T", help="Softmax temperature for both the teachers and the student. [default: 4]"
    ),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing run in --out."),
    json: bool = JsonOption,
) -> None:
    """Train a small network by distilling larger ones.

    Settings for which no option is given are taken from the first teacher's recipe.
    """
    options = {
        "model.width": width,
        "train.epochs": epochs,
        "distill.weight": weight,
        "distill.temperature": temperature,
    }
    changes = {key: value for key, value in options.items() if value is not None}
    with progress() as listener:
        from edgerec.recipe import parse_assignment
        from edgerec.train.distill import distill as train

        changes |= dict(map(parse_assignment, assignments))
        with resume_hint(out):
            run = train(teacher, student, out, changes=changes, overwrite=overwrite, listener=listener)
    show_run(run, json)
