"""The command ``edgerec distill``."""

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
        help="Finished run of a teacher. May be repeated; the student then learns the teachers' mean output.",
    ),
    student: str = typer.Option(..., metavar="NAME", help="Architecture of the student; see 'edgerec models'."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the student's run."),
    width: float | None = typer.Option(
        None, metavar="FACTOR", help="Width multiplier of the student. [default: the width of the first teacher]"
    ),
    epochs: int | None = typer.Option(
        None, metavar="N", help="Number of training epochs. [default: the number for the first teacher]"
    ),
    weight: float | None = typer.Option(
        None,
        metavar="FRACTION",
        help="Weight of the distillation loss, 0 to 1. The label loss has the weight 1 - FRACTION. [default: 0.7]",
    ),
    temperature: float | None = typer.Option(
        None, metavar="T", help="Softmax temperature of the teachers and the student. [default: 4]"
    ),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the run in --out."),
    json: bool = JsonOption,
) -> None:
    """Train a small network from larger ones by distillation.

    Settings for which no option is used come from the recipe of the first teacher.
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
