"""``edgerec build``"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, progress, say, show_json
from edgerec.cli.recipe_options import SUBJECT_HELP, compose_recipe, is_recipe


def build(
    subject: str = typer.Argument(..., metavar="RECIPE.toml|DATA", help=SUBJECT_HELP),
    target: str = typer.Option(
        "rpi", "--target", "-t", help="The device: a name from edgerec targets, or a .toml file."
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Folder for the run; the bundle is written beside it. [default: runs/NAME]"
    ),
    data: list[str] | None = typer.Option(
        None, help="Data set to merge with DATA, or to use instead of the recipe's data; may be repeated."
    ),
    arch: str | None = typer.Option(None, help="Architecture; edgerec models lists them."),
    epochs: int | None = typer.Option(None, help="Number of training epochs."),
    method: str | None = typer.Option(None, help="Compression method, as for edgerec quantize."),
    max_drop: float | None = typer.Option(
        None, help="Largest loss of accuracy by compression that is accepted, in percentage points. [default: 1]"
    ),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Set any other recipe key."),
    open_page: bool | None = typer.Option(
        None, "--open/--no-open", help="Open the report in a browser. [default: if run in a terminal with a display]"
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start again and replace the run and the bundle."),
    json: bool = JsonOption,
) -> None:
    """Train, quantize, export, verify and write the report. After an interruption, the same command continues."""
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
            made = build_bundle(recipe, folder, target, method=method, overwrite=overwrite, listener=listener)
        except KeyboardInterrupt:
            without = " without --overwrite" * overwrite
            say(f"interrupted; to continue, run the same command again{without}", err=True)
            raise typer.Exit(130) from None
    if json:
        show_json(made.to_dict())
        return
    for step in made.reused:
        say(f"reused   complete result of {step} (to start again, add --overwrite)")
    say(f"run      {made.run}  (float {made.accuracy:.2%} on the test images)")
    say(f"variant  {made.variant}  ({made.top1:.2%}, {made.size_bytes:,} bytes)")
    say(f"bundle   {made.bundle}  (verified with {made.golden} golden images)")
    say(f"report   {made.page}")
    if made.warning:
        from edgerec.train.baseline import ADVICE

        say(f"next     {ADVICE}")
    else:
        say(f"next     copy {made.bundle} to the device and follow its README.md")
    if open_page or (open_page is None and _has_browser()):
        import webbrowser

        from edgerec.utils.atomic import real_path

        webbrowser.open(real_path(made.page).as_uri())


def default_run(subject: str) -> Path:
    """Return ``runs/NAME``, where NAME is the name of the data or the recipe."""
    from edgerec.utils.atomic import real_path

    name = Path(subject).stem if is_recipe(subject) or subject.endswith(".npz") else real_path(subject).name
    return Path("runs") / name


def _has_browser() -> bool:
    from edgerec.camera.sinks.window import has_screen

    return sys.stdout.isatty() and has_screen()
