"""The command ``edgerec distill``."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, progress
from edgerec.cli.recipe_options import SET_HELP
from edgerec.cli.train import resume_hint, show_run


def distill(
    teacher: list[Path] = typer.Option(
        ..., "--teacher", metavar="RUN", help="Teacher: a finished run. May be repeated; the mean output is learned."
    ),
    student: str = typer.Option(..., metavar="NAME", help="Architecture of the student; see edgerec models."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the student's run."),
    width: float | None = typer.Option(
        None, metavar="FACTOR", help="Factor for the student's number of channels. [default: the teacher's recipe]"
    ),
    epochs: int | None = typer.Option(
        None, metavar="N", help="Number of training epochs. [default: the teacher's recipe]"
    ),
    weight: float | None = typer.Option(
        None,
        metavar="FRACTION",
        help="Weight of the distillation loss, 0 to 1; the loss of the labels has the remaining weight. [default: 0.7]",
    ),
    temperature: float | None = typer.Option(
        None, metavar="T", help="Temperature of the softmax of teachers and student. [default: 4]"
    ),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the run in --out."),
    json: bool = JsonOption,
) -> None:
    """Train a small network on the outputs of large ones.

    All settings that are not given as options are those in the recipe of the first teacher.
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
