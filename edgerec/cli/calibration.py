"""``edgerec calibration make | check | show``"""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.help import GroupedCommand, GroupedCommands
from edgerec.cli.output import JsonOption, progress, say, show_json, suggest

app = typer.Typer(
    help="Make, check and show calibration sets, the images that determine the activation ranges of an int8 model.",
    cls=GroupedCommands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_DATA = typer.Option(None, help="Where the run's pictures are now, if they were moved.")


@app.command(cls=GroupedCommand)
def make(
    subject: str | None = typer.Argument(None, metavar="RUN|RECIPE.toml", help="Whose training pictures."),
    out: Path = typer.Option(..., help="The set's folder."),
    data: list[str] | None = typer.Option(None, help="Images, as for train; for a run, their new location if moved."),
    recipe: str = typer.Option("stratified", help="stratified, random, diverse, or a .toml."),
    images: int | None = typer.Option(None, min=1, help="How many pictures. [default: 200]"),
    seed: int | None = typer.Option(None, min=0, help="Which ones. [default: 0]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the set."),
    json: bool = JsonOption,
) -> None:
    """Draw a calibration set from the training pictures."""
    if subject is None and not data:
        raise typer.BadParameter("expected a run, a recipe's .toml, or --data FOLDER")
    with progress() as listener:
        from edgerec.compress import calibration

        made = calibration.make(
            subject,
            out,
            recipe=recipe,
            images=images,
            seed=seed,
            data=data or None,
            overwrite=overwrite,
            listener=listener,
        )
    if json:
        show_json(made.to_dict())
        return
    say(f"set      {out}  ({len(made.images)} pictures of {len(set(made.labels))} classes)")
    say(f"digest   {made.digest}")
    suggest("calibration", "show", out, "--out", "sheet.png")


@app.command(cls=GroupedCommand)
def check(
    pictures: Path = typer.Argument(..., metavar="SET|FOLDER|NPZ", help="A set, an image folder, a .npz or .npy."),
    run: Path = typer.Option(..., help="The run that they are for."),
    data: list[str] | None = _DATA,
    json: bool = JsonOption,
) -> None:
    """Find what is wrong with a calibration set; exit code 1 when it is unfit."""
    with progress() as listener:
        from edgerec.compress.calibration.check import check as examine

        report = examine(pictures, run, data=data or None, listener=listener)
    if json:
        show_json(report.to_dict())
    else:
        for finding in report.findings:
            say(f"{finding.severity:<8} {finding.kind:<14} {finding}")
        say(
            f"{'ok' if report.ok else 'unfit'}: {report.images} pictures for {report.run}, digest {report.digest[:12]}…"
        )
    if not report.ok:
        raise typer.Exit(1)


@app.command(cls=GroupedCommand)
def show(
    pictures: Path = typer.Argument(..., metavar="SET", help="A set; with --run, whatever check takes."),
    out: Path = typer.Option(..., help="The PNG."),
    run: Path | None = typer.Option(None, help="Draw the histogram of its training pictures too."),
    data: list[str] | None = _DATA,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the PNG."),
) -> None:
    """Draw a contact sheet with labels, and the histogram of pixel values."""
    with progress() as listener:
        from edgerec.compress import calibration

        count = calibration.show(pictures, out, run=run, data=data or None, overwrite=overwrite, listener=listener)
    say(f"sheet    {out}  ({count} pictures)")
