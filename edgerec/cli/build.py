"""Implement the ``edgerec build`` command."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, progress, say, show_json
from edgerec.cli.recipe_options import SET_HELP, SUBJECT_HELP, compose_recipe, is_recipe


def build(
    subject: str = typer.Argument(..., metavar="DATA|RECIPE.toml", help=SUBJECT_HELP),
    target: str = typer.Option(
        "rpi", "--target", "-t", metavar="NAME", help="Target: a name listed by 'edgerec targets', or a .toml file."
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        metavar="FOLDER",
        help="Output folder for the run, with the bundle next to it. [default: runs/NAME]",
    ),
    data: list[str] | None = typer.Option(
        None,
        metavar="DATA",
        help="Data set to merge with DATA or to use instead of the recipe's data. May be repeated.",
    ),
    arch: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Architecture: a name listed by 'edgerec models'. [default: chosen for the images and target]",
    ),
    epochs: int | None = typer.Option(
        None,
        metavar="N",
        min=1,
        help="Number of training epochs. [default: 15 to 60, depending on the number of images]",
    ),
    method: str | None = typer.Option(
        None, metavar="NAME", help="Compression method (see 'edgerec quantize --help'). [default: auto]"
    ),
    max_drop: float | None = typer.Option(
        None, metavar="POINTS", help="Maximum accuracy loss due to compression, in percentage points. [default: 1]"
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Start from scratch and replace an existing run and bundle."
    ),
    json: bool = JsonOption,
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP, rich_help_panel="Advanced"),
    open_page: bool | None = typer.Option(
        None,
        "--open/--no-open",
        help="Open the report in a browser. [default: only with a terminal and a display]",
        rich_help_panel="Advanced",
    ),
) -> None:
    """Train, quantize, export, verify and write a report.

    If the command is interrupted, run it again with the same arguments to resume.
    """
    folder = out or default_run(subject)
    with progress() as listener:
        options = {
            "data.source": data or None,
            "model.arch": arch,
            "train.epochs": epochs,
            "compress.max_drop": max_drop,
        }
        recipe = compose_recipe(subject, options, assignments)
        from edgerec.workflow import build as build_bundle

        try:
            result = build_bundle(recipe, folder, target, method=method, overwrite=overwrite, listener=listener)
        except KeyboardInterrupt:
            restriction = " without --overwrite" if overwrite else ""
            say(f"interrupted; to resume, run the same command again{restriction}", err=True)
            raise typer.Exit(130) from None
    if json:
        show_json(result.to_dict())
        return
    for step in result.reused:
        say(f"reused   result of {step} from an earlier run of this command (to start from scratch, add --overwrite)")
    say(f"run      {result.run}  (float {result.accuracy:.2%} on the test images)")
    say(f"variant  {result.variant}  ({result.top1:.2%} on the test images, {result.size_bytes:,} bytes)")
    say(f"bundle   {result.bundle}  (verified with {result.golden} golden images)")
    say(f"report   {result.page}")
    if result.warning:
        from edgerec.train.baseline import ADVICE

        say(f"next     {ADVICE}")
    else:
        say(f"next     copy {result.bundle} to the device and follow the README.md in this folder")
    if open_page or (open_page is None and _has_browser()):
        import webbrowser

        from edgerec.utils.atomic import real_path

        webbrowser.open(real_path(result.page).as_uri())


def default_run(subject: str) -> Path:
    """Return ``runs/NAME``, where NAME is the name of the data set or recipe."""
    from edgerec.utils.atomic import real_path

    name = Path(subject).stem if is_recipe(subject) or subject.endswith(".npz") else real_path(subject).name
    return Path("runs") / name


def _has_browser() -> bool:
    from edgerec.camera.sinks.window import has_screen

    return sys.stdout.isatty() and has_screen()
