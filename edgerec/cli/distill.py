"""``edgerec distill``"""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, progress
from edgerec.cli.train import show, stopped


def distill(
    teacher: list[Path] = typer.Option(
        ..., "--teacher", help="A run to learn from; of several the mean answer. May be given several times."
    ),
    student: str = typer.Option(..., help="Architecture of the small network (edgerec models)."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the student's run."),
    width: float | None = typer.Option(None, help="Factor on the student's number of channels."),
    epochs: int | None = typer.Option(None, help="Passes over the training pictures."),
    weight: float | None = typer.Option(None, help="Part of the loss that is the distance to the teachers' answer."),
    temperature: float | None = typer.Option(None, help="Softens the answers."),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Any other key of the recipe."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the run in --out."),
    json: bool = JsonOption,
) -> None:
    """Train a small network on what large ones answer; the rest of the recipe is the first teacher's."""
    options = {
        "model.width": width,
        "train.epochs": epochs,
        "distill.weight": weight,
        "distill.temperature": temperature,
    }
    given = {key: value for key, value in options.items() if value is not None}
    with progress() as listener:
        from edgerec.recipe import parse_assignment
        from edgerec.train.distill import distill as train

        changes = given | dict(map(parse_assignment, assignments))
        with stopped(out):
            run = train(teacher, student, out, changes=changes, overwrite=overwrite, listener=listener)
    show(run, json)
