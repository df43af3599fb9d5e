"""The command ``edgerec import``."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, say, show_edgetpu, show_json, show_log, suggest


def check_choices(activation: str | None, fit: str | None) -> None:
    """Raise a usage error if ``activation`` or ``fit`` is neither None nor one of its choices."""
    from typing import get_args

    from edgerec.contract.preprocess import Fit
    from edgerec.runtime.third_party import CHOICES

    if fit is not None and fit not in get_args(Fit):
        raise typer.BadParameter(f"{fit!r} is not one of {', '.join(get_args(Fit))}", param_hint="--fit")
    if activation is not None and activation not in CHOICES:
        raise typer.BadParameter(f"{activation!r} is not one of {', '.join(CHOICES)}", param_hint="--activation")


# Group of options in --help.
_MODEL = "If the model's metadata is missing or wrong"


def import_(
    model: Path = typer.Argument(..., metavar="MODEL.tflite", help="A .tflite image classifier from any tool."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder or .zip file for the bundle."),
    labels: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Label file: one label per line, or CSV, JSON, YAML or label_map.pbtxt. [default: the labels in the "
        "file's metadata]",
    ),
    target: str = typer.Option(
        "desktop", "--target", "-t", metavar="NAME", help="Target: a name from 'edgerec targets', or a .toml file."
    ),
    images: list[Path] = typer.Option(
        [],
        "--picture",
        metavar="IMAGE",
        help="Image for the golden vectors. May be repeated. [default: images that come with edgerec]",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the bundle."),
    json: bool = JsonOption,
    normalise: str | None = typer.Option(
        None,
        metavar="NAME|NUMBERS",
        help="Normalization that the model expects: unit, signed, pixels, tf, torch, caffe, MEAN,STD or "
        "R,G,B/R,G,B (means/standard deviations in pixel units). Add the prefix 'bgr:' for a model that expects BGR. "
        "Required for a float model without metadata.",
        rich_help_panel=_MODEL,
    ),
    activation: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Function that converts the model's outputs to scores: none, softmax or sigmoid. "
        "[default: none if the outputs are probabilities, otherwise softmax]",
        rich_help_panel=_MODEL,
    ),
    fit: str | None = typer.Option(
        None,
        metavar="NAME",
        help="How to fit an image with another aspect ratio to the input: crop (the center), stretch or pad (with "
        "black). [default: the method of the tool that made the model, or stretch if the tool is not recognized]",
        rich_help_panel=_MODEL,
    ),
) -> None:
    """Create a bundle from a .tflite file that another tool made."""
    from typing import cast

    from edgerec.contract.preprocess import Fit
    from edgerec.export import import_tflite

    check_choices(activation, fit)
    show_log()
    report = import_tflite(
        model,
        out,
        labels=labels,
        target=target,
        normalise=normalise,
        activation=activation,
        fit=cast(Fit | None, fit),
        images=images,
        overwrite=overwrite,
    )
    if json:
        show_json(report.to_dict())
        return
    mean, std = report.normalise
    say(f"bundle   {report.bundle}  ({report.labels} labels, {report.size_bytes:,} bytes)")
    say(f"input    {report.input.dtype} {list(report.input.shape)}, (pixel - {mean:g}) / {std:g}")
    if report.layout:
        say(f"         the file's own input has {report.layout}; an operator at the start of the graph converts images")
    if report.family:
        say(f"family   {report.family}")
    say(f"fit      {report.fit}: {report.fit_reason}")
    say(f"labels   {report.labels}, from {report.label_source}")
    say(f"scores   {report.output.dtype}, activation {report.activation}: {report.activation_reason}")
    if not report.sums_to_one:
        say("         the scores of an image need not add up to 1: several labels, or none, may apply to an image")
    say(f"verified {report.golden} golden images")
    if report.edgetpu is not None:
        show_edgetpu(report.edgetpu)
    suggest("predict", report.bundle, "IMAGE")
