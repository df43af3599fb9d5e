"""Implement the ``edgerec data show``, ``check`` and ``pack`` commands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.help import GroupedCommand, GroupedCommands
from edgerec.cli.output import JsonOption, progress, repeat_command, say, show_json, suggest
from edgerec.cli.recipe_options import GROUP_BY_HELP, SET_HELP, STRICT_HELP, compose_recipe

if TYPE_CHECKING:
    from edgerec.data.check_results import DataReport
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
    metavar="DATA|RECIPE|RUN",
    help="A run, a recipe (.toml), or one or more data sets in any format that 'edgerec train' accepts. Several data "
    "sets are merged.",
)
_SET = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP)
_OVERWRITE = typer.Option(False, "--overwrite", help="Replace an existing PNG file.")


@app.command(cls=GroupedCommand)
def show(
    subjects: list[str] = _SUBJECT,
    augment: bool = typer.Option(False, "--augment", help="Show augmented images."),
    out: Path = typer.Option(Path("sheet.png"), "--out", "-o", metavar="PNG", help="Output PNG file."),
    assignments: list[str] = _SET,
    overwrite: bool = _OVERWRITE,
    json: bool = JsonOption,
) -> None:
    """Draw a contact sheet of preprocessed images.

    Each row shows images from one class.
    """
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
    say(f"sheet    {sheet.path}  ({sum(sheet.counts.values()):,} images of {len(sheet.counts)} classes)")


# Maximum number of printed findings of each kind. The output of --json and --out contains all findings.
MAX_LINES = 10


@app.command(cls=GroupedCommand)
def check(
    subjects: list[str] = _SUBJECT,
    group_by: str | None = typer.Option(None, metavar="REGEX", help=GROUP_BY_HELP),
    labels: bool = typer.Option(True, help="Also search for label errors (slow)."),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        metavar="PNG|FOLDER",
        help="Output PNG file for a contact sheet of the images with findings, or output folder for this sheet and a "
        "list of all findings.",
    ),
    strict: bool = typer.Option(
        False, "--strict", help="Exit with code 1 if errors are found. Warnings do not affect the exit code."
    ),
    assignments: list[str] = _SET,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing file or folder in --out."),
    json: bool = JsonOption,
) -> None:
    """Find damaged files, duplicates and label errors."""
    recipe = _recipe(subjects, assignments)
    if group_by is not None:
        recipe = recipe.override({"data.group_by": group_by}, "command line")
    with progress() as listener:
        from edgerec.data.checks import check_data
        from edgerec.data.tfrecord_reader import Packed, is_pack

        if isinstance(recipe.data.source, str) and is_pack(recipe.data.source):
            packed = Packed.open(recipe.data.source)
            packed.verify(listener)
            if json:
                show_json(packed.to_dict() | {"ok": True})
            else:
                say(f"ok: {sum(packed.counts.values()):,} packed images are unchanged")
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
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Output folder for the shards."),
    input_size: int | None = typer.Option(
        None,
        metavar="PIXELS",
        help="Width and height of the model's input, in pixels. [default: the images' size, but at most 96]",
    ),
    group_by: str | None = typer.Option(None, metavar="REGEX", help=GROUP_BY_HELP),
    strict: bool | None = typer.Option(None, "--strict", help=STRICT_HELP),
    assignments: list[str] = _SET,
    resume: bool = typer.Option(False, "--resume", help="Resume packing after an interruption."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing pack in --out."),
    json: bool = JsonOption,
) -> None:
    """Write preprocessed images as TFRecord shards.

    Use shards if the data does not fit into memory or is read by several machines.
    """
    options = {"data.input_size": input_size, "data.group_by": group_by, "data.strict": strict}
    changes = {key: value for key, value in options.items() if value is not None}
    recipe = _recipe(subjects, assignments).override(changes, "command line")
    with progress() as listener:
        from edgerec.data.tfrecord_writer import pack_data
        from edgerec.models import least_size_px
        from edgerec.train.backend import keras

        keras()  # loads TensorFlow quietly
        least = least_size_px(recipe.model.arch)
        try:
            packed = pack_data(recipe, out, least_size_px=least, resume=resume, overwrite=overwrite, listener=listener)
        except KeyboardInterrupt:
            say(f"interrupted; resume with: {repeat_command(context, '--resume')}", err=True)
            raise typer.Exit(130) from None
    if json:
        show_json(packed.to_dict())
        return
    counts = ", ".join(f"{split}: {images:,} images" for split, images in packed.counts.items())
    say(f"packed   {packed.location}  ({counts}; {len(packed.shards)} shards, {packed.size_bytes / 1e6:,.1f} MB)")
    suggest("train", "--data", packed.location, "--out", "runs/packed")


def _show_report(report: DataReport, out: Path | None) -> None:
    kinds = [finding.kind for finding in report.findings]
    for kind in dict.fromkeys(kinds):
        findings = [finding for finding in report.findings if finding.kind == kind]
        for finding in findings[:MAX_LINES]:
            say(f"{finding.severity:<8} {kind:<20} {finding}")
        if len(findings) > MAX_LINES:
            say(f"{'':<8} {kind:<20} … and {len(findings) - MAX_LINES:,} more; see all with --json or --out FOLDER")
    severities = Counter(finding.severity for finding in report.findings)
    counts = ", ".join(f"{count:,} {name}{'s' * (count > 1)}" for name, count in severities.items()) or "no findings"
    classes = f" of {len(report.counts)} classes" if len(report.counts) > 1 else ""
    say(f"{'ok' if report.ok else 'failed'}: {report.images:,} images{classes}: {counts}")
    if report.label_accuracy is not None:
        say(f"labels   checked with a quick classifier whose accuracy is {report.label_accuracy:.0%}")
    if out is not None:
        say(f"report   {out}")


def _recipe(subjects: list[str], assignments: list[str]) -> Recipe:
    """Build a recipe from a command's arguments.

    Args:
        subjects: a recipe file, a run, or one or more data sets to use with the default recipe.
        assignments: values of ``--set``.
    """
    if len(subjects) > 1:
        return compose_recipe(None, {"data.source": subjects}, assignments)
    subject = subjects[0]
    run_recipe = Path(subject) / "recipe.toml"
    return compose_recipe(str(run_recipe) if run_recipe.is_file() else subject, {}, assignments)
