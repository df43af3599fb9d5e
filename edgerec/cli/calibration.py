"""Implement the ``edgerec calibration make``, ``check`` and ``show`` commands."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.help import GroupedCommand, GroupedCommands
from edgerec.cli.options import MOVED_DATA_HELP
from edgerec.cli.output import JsonOption, progress, say, show_json, suggest

app = typer.Typer(
    help="Make, check and show calibration sets for quantization.",
    cls=GroupedCommands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_DATA = typer.Option(None, metavar="DATA", help=MOVED_DATA_HELP)


@app.command(cls=GroupedCommand)
def make(
    subject: str | None = typer.Argument(
        None, metavar="RUN|RECIPE.toml", help="Run or training recipe whose training images to select from."
    ),
    out: Path = typer.Option(..., metavar="FOLDER", help="Output folder for the calibration set."),
    data: list[str] | None = typer.Option(
        None,
        metavar="DATA",
        help="Images to select from, in any format that 'edgerec train' accepts. For a run, the new location of its "
        "images if they were moved.",
    ),
    recipe: str = typer.Option(
        "stratified",
        metavar="NAME|FILE",
        help="Calibration recipe: stratified, random, diverse or a .toml file.",
    ),
    images: int | None = typer.Option(
        None,
        min=1,
        metavar="N",
        help="Number of images to select. [default: the number in the calibration recipe, 200 for stratified]",
    ),
    seed: int | None = typer.Option(None, min=0, metavar="N", help="Seed for the random selection. [default: 0]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing calibration set."),
    json: bool = JsonOption,
) -> None:
    """Create a calibration set from training images."""
    if subject is None and not data:
        raise typer.BadParameter("no images to select from: pass a run or a recipe, or use --data FOLDER")
    with progress() as listener:
        from edgerec.compress import calibration

        calibration_set = calibration.make(
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
        show_json(calibration_set.to_dict())
        return
    images_text = f"{len(calibration_set.images)} images of {len(set(calibration_set.labels))} classes"
    say(f"set      {out}  ({images_text})")
    say(f"digest   {calibration_set.digest}")
    suggest("calibration", "show", out, "--out", "sheet.png")


@app.command(cls=GroupedCommand)
def check(
    subject: Path = typer.Argument(
        ..., metavar="SET|FOLDER|NPZ", help="Calibration set, image folder, .npz file or .npy file."
    ),
    run: Path = typer.Option(..., metavar="RUN", help="Run to be quantized with these images."),
    data: list[str] | None = _DATA,
    json: bool = JsonOption,
) -> None:
    """Check whether images are suitable for calibration.

    If they are not, the exit code is 1.
    """
    with progress() as listener:
        from edgerec.compress.calibration.check import check as check_images

        report = check_images(subject, run, data=data or None, listener=listener)
    if json:
        show_json(report.to_dict())
    else:
        for finding in report.findings:
            say(f"{finding.severity:<8} {finding.kind:<14} {finding}")
        say(
            f"{'ok' if report.ok else 'unsuitable'}: {report.images} images for {report.run}, "
            f"digest {report.digest[:12]}…"
        )
    if not report.ok:
        raise typer.Exit(1)


@app.command(cls=GroupedCommand)
def show(
    subject: Path = typer.Argument(
        ...,
        metavar="SET",
        help="Calibration set. With --run, an image folder, .npz file or .npy file is also accepted.",
    ),
    out: Path = typer.Option(..., metavar="PNG", help="Output PNG file."),
    run: Path | None = typer.Option(
        None, metavar="RUN", help="Also draw the histogram of this run's training images for comparison."
    ),
    data: list[str] | None = _DATA,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing PNG file."),
) -> None:
    """Draw a contact sheet and pixel histogram of calibration images."""
    with progress() as listener:
        from edgerec.compress import calibration

        count = calibration.show(subject, out, run=run, data=data or None, overwrite=overwrite, listener=listener)
    say(f"sheet    {out}  ({count} images)")
