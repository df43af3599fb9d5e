"""Implement the ``edgerec import`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.options import ACTIVATION_HELP, FIT_HELP
from edgerec.cli.output import JsonOption, say, show_edgetpu, show_json, show_log, suggest


def check_choices(activation: str | None, fit: str | None) -> None:
    """Raise a usage error if ``activation`` or ``fit`` has an unsupported value."""
    from typing import get_args

    from edgerec.contract.preprocess import Fit
    from edgerec.runtime.third_party import CHOICES

    if fit is not None and fit not in get_args(Fit):
        raise typer.BadParameter(f"expected one of {', '.join(get_args(Fit))}, got {fit!r}", param_hint="--fit")
    if activation is not None and activation not in CHOICES:
        raise typer.BadParameter(f"expected one of {', '.join(CHOICES)}, got {activation!r}", param_hint="--activation")


_MODEL = "If the model's metadata is missing or wrong"


def import_(
    model: Path = typer.Argument(
        ..., metavar="MODEL.tflite", help="Image classifier in .tflite format, made with any tool."
    ),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Output folder or .zip file for the bundle."),
    labels: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Label file with one label per line, or in CSV, JSON, YAML or label_map.pbtxt format. [default: the "
        "labels in the model's metadata]",
    ),
    target: str = typer.Option(
        "desktop", "--target", "-t", metavar="NAME", help="Target: a name listed by 'edgerec targets', or a .toml file."
    ),
    images: list[Path] = typer.Option(
        [],
        "--image",
        metavar="IMAGE",
        help="Image to use as a golden image. May be repeated. [default: images included in edgerec]",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing bundle."),
    json: bool = JsonOption,
    normalize: str | None = typer.Option(
        None,
        metavar="NAME|NUMBERS",
        help="Normalization that the model expects: unit, signed, pixels, tf, torch, caffe, MEAN,STD or "
        "R,G,B/R,G,B (means/standard deviations in pixel units). Add the prefix 'bgr:' if the model expects BGR. "
        "Required for float models without metadata.",
        rich_help_panel=_MODEL,
    ),
    activation: str | None = typer.Option(None, metavar="NAME", help=ACTIVATION_HELP, rich_help_panel=_MODEL),
    fit: str | None = typer.Option(None, metavar="NAME", help=FIT_HELP, rich_help_panel=_MODEL),
) -> None:
    """Create a bundle from a .tflite file made with another tool."""
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
        normalize=normalize,
        activation=activation,
        fit=cast(Fit | None, fit),
        images=images,
        overwrite=overwrite,
    )
    if json:
        show_json(report.to_dict())
        return
    mean, std = report.normalize
    say(f"bundle   {report.bundle}  ({report.labels} labels, {report.size_bytes:,} bytes)")
    say(f"input    {report.input.dtype} {list(report.input.shape)}, (pixel - {mean:g}) / {std:g}")
    if report.layout:
        say(f"         the original input has {report.layout}; an operator was added to the graph to convert images")
    if report.family:
        say(f"family   {report.family}")
    say(f"fit      {report.fit}: {report.fit_reason}")
    say(f"labels   {report.labels}, from {report.label_source}")
    say(f"scores   {report.output.dtype}, activation {report.activation}: {report.activation_reason}")
    if not report.sums_to_one:
        say("         an image's scores need not add up to 1: any number of labels may apply to an image, even none")
    say(f"verified {report.golden} golden images")
    if report.edgetpu is not None:
        show_edgetpu(report.edgetpu)
    suggest("predict", report.bundle, "IMAGE")
