"""``edgerec data show | check | pack``"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.help import GroupedCommand, GroupedCommands
from edgerec.cli.output import JsonOption, progress, repeated, say, show_json, suggest
from edgerec.cli.recipe_options import compose_recipe

if TYPE_CHECKING:
    from edgerec.data.checks import DataReport
    from edgerec.recipe import Recipe

app = typer.Typer(
    help="Show, check and pack data sets.",
    cls=GroupedCommands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_SUBJECT = typer.Argument(
    ...,
    metavar="DATA...|RECIPE.toml|RUN",
    help="One or more data sets as for train --data, which are merged; or a recipe or run that names them.",
)
_SET = typer.Option([], "--set", metavar="KEY=VALUE", help="Change a key of the recipe: augment.cutout=0.3.")
_OVERWRITE = typer.Option(False, "--overwrite", help="Replace the PNG.")


@app.command(cls=GroupedCommand)
def show(
    subjects: list[str] = _SUBJECT,
    augment: bool = typer.Option(False, "--augment", help="Show augmented images."),
    out: Path = typer.Option(Path("sheet.png"), "--out", "-o", help="The PNG."),
    assignments: list[str] = _SET,
    overwrite: bool = _OVERWRITE,
    json: bool = JsonOption,
) -> None:
    """Draw a contact sheet: a row per class, as the model sees it."""
    recipe = _recipe(subjects, assignments)
    with progress() as listener:
        from edgerec.data.contact_sheet import show_data
        from edgerec.models import least_size_px

        if augment:
            from edgerec.train.backend import keras

            keras()  # loads TensorFlow quietly

        least = least_size_px(recipe.model.arch)
        sheet = show_data(recipe, out, augment=augment, overwrite=overwrite, least_size_px=least, listener=listener)
    if json:
        show_json(sheet.to_dict())
        return
    say(f"sheet    {sheet.path}  ({sum(sheet.counts.values()):,} pictures of {len(sheet.counts)} classes)")


# Lines of one kind that are printed; --json and --out have all.
MOST_LINES = 10


@app.command(cls=GroupedCommand)
def check(
    subjects: list[str] = _SUBJECT,
    group_by: str | None = typer.Option(
        None,
        help="Regular expression, as for train: images with the same match below the class folder stay in one split.",
    ),
    labels: bool = typer.Option(True, help="Also search for label errors, which takes most of the time."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="PNG file for the doubtful images, or folder for all findings."
    ),
    strict: bool = typer.Option(False, "--strict", help="Exit with code 1 if there is an error, not only warnings."),
    assignments: list[str] = _SET,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the file or folder in --out."),
    json: bool = JsonOption,
) -> None:
    """Find damaged files, copies, label errors and other faults of a data set."""
    recipe = _recipe(subjects, assignments)
    if group_by is not None:
        recipe = recipe.override({"data.group_by": group_by}, "command line")
    with progress() as listener:
        from edgerec.data.check_data import check_data
        from edgerec.data.tfrecord_reader import Packed, is_pack

        if isinstance(recipe.data.source, str) and is_pack(recipe.data.source):
            made = Packed.open(recipe.data.source)
            made.verify(listener)
            if json:
                show_json(made.to_dict() | {"ok": True})
            else:
                say(f"ok: {sum(made.counts.values()):,} packed pictures are what was packed")
            return
        report = check_data(recipe, out, labels=labels, overwrite=overwrite, listener=listener)
    if json:
        show_json(report.to_dict())
    else:
        _show_report(report, out)
    if strict and not report.ok:
        raise typer.Exit(1)


@app.command(cls=GroupedCommand)
def pack(
    context: typer.Context,
    subjects: list[str] = _SUBJECT,
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the shards."),
    input_size: int | None = typer.Option(None, help="Side of the model's input, pixels."),
    group_by: str | None = typer.Option(
        None,
        help="Regular expression, as for train: images with the same match below the class folder stay in one split.",
    ),
    strict: bool | None = typer.Option(
        None, "--strict", help="Refuse data with files that are not images instead of skipping them."
    ),
    assignments: list[str] = _SET,
    resume: bool = typer.Option(False, "--resume", help="Resume an interrupted pack."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the pack in --out."),
    json: bool = JsonOption,
) -> None:
    """Write preprocessed images as TFRecord shards, for data that exceeds memory or that several machines read."""
    options = {"data.input_size": input_size, "data.group_by": group_by, "data.strict": strict}
    given = {key: value for key, value in options.items() if value is not None}
    recipe = _recipe(subjects, assignments).override(given, "command line")
    with progress() as listener:
        from edgerec.data.tfrecord_writer import pack_data
        from edgerec.models import least_size_px
        from edgerec.train.backend import keras

        keras()  # loads TensorFlow quietly
        least = least_size_px(recipe.model.arch)
        try:
            made = pack_data(recipe, out, least_size_px=least, resume=resume, overwrite=overwrite, listener=listener)
        except KeyboardInterrupt:
            say(f"interrupted; resume with: {repeated(context, '--resume')}", err=True)
            raise typer.Exit(130) from None
    if json:
        show_json(made.to_dict())
        return
    counts = ", ".join(f"{pictures:,} to {split}" for split, pictures in made.counts.items())
    say(f"packed   {made.place}  ({counts}; {len(made.shards)} shards, {made.size_bytes / 1e6:,.1f} MB)")
    suggest("train", "--data", made.place, "--out", "runs/packed")


def _show_report(report: DataReport, out: Path | None) -> None:
    kinds = [finding.kind for finding in report.findings]
    for kind in dict.fromkeys(kinds):
        found = [finding for finding in report.findings if finding.kind == kind]
        for finding in found[:MOST_LINES]:
            say(f"{finding.severity:<8} {kind:<20} {finding}")
        if len(found) > MOST_LINES:
            say(f"{'':<8} {kind:<20} … and {len(found) - MOST_LINES:,} more: --json or --out FOLDER has all")
    severities = Counter(finding.severity for finding in report.findings)
    found_text = (
        ", ".join(f"{count:,} {name}{'s' * (count > 1)}" for name, count in severities.items()) or "nothing found"
    )
    classes = f" of {len(report.counts)} classes" if len(report.counts) > 1 else ""
    say(f"{'ok' if report.ok else 'spoilt'}: {report.pictures:,} pictures{classes}: {found_text}")
    if report.label_accuracy is not None:
        say(f"labels   judged by a quick classifier that is right on {report.label_accuracy:.0%}")
    if out is not None:
        say(f"report   {out}")


def _recipe(subjects: list[str], assignments: list[str]) -> Recipe:
    """Return the recipe of a file or a run, or the default recipe with ``subjects`` as its data."""
    if len(subjects) > 1:
        return compose_recipe(None, {"data.source": subjects}, assignments)
    subject = subjects[0]
    run_recipe = Path(subject) / "recipe.toml"
    return compose_recipe(str(run_recipe) if run_recipe.is_file() else subject, {}, assignments)
