"""``edgerec import``"""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, chatter, say, show_json


def import_(
    model: Path = typer.Argument(..., help="A finished .tflite image classifier."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the bundle, or a .zip."),
    labels: Path | None = typer.Option(
        None,
        help="Label file: one label per line, or CSV, JSON, YAML or label_map.pbtxt. [default: the model's metadata]",
    ),
    target: str = typer.Option("desktop", "--target", "-t", help="Of those in edgerec targets, or a .toml file."),
    normalise: str | None = typer.Option(
        None,
        help="Normalization that the model expects: unit, signed, pixels, tf, torch, caffe, MEAN,STD or "
        "R,G,B/R,G,B (means/deviations in pixel units); with bgr: before it for a model that takes blue first. "
        "Required for a float model without metadata.",
    ),
    fit: str = typer.Option(
        "stretch", help="A picture of another shape is cut (crop), squeezed (stretch) or framed (pad)."
    ),
    pictures: list[Path] = typer.Option([], "--picture", help="A picture for the golden vectors; may be repeated."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the bundle."),
    json: bool = JsonOption,
) -> None:
    """Write the bundle of a finished .tflite model."""
    from typing import cast, get_args

    from edgerec.contract.preprocess import Fit
    from edgerec.export import import_tflite

    if fit not in get_args(Fit):
        raise typer.BadParameter(f"{fit!r} is none of {', '.join(get_args(Fit))}", param_hint="--fit")
    chatter()
    report = import_tflite(
        model,
        out,
        labels=labels,
        target=target,
        normalise=normalise,
        fit=cast(Fit, fit),
        pictures=pictures,
        overwrite=overwrite,
    )
    if json:
        show_json(report.to_dict())
        return
    mean, std = report.normalise
    say(f"bundle   {report.bundle}  ({report.labels} labels, {report.size_bytes:,} bytes)")
    say(f"input    {report.input.dtype} {list(report.input.shape)}, (pixel - {mean:g}) / {std:g}")
    say(f"scores   {report.output.dtype}, activation {report.activation} after {report.last_operator}")
    say(f"verified {report.golden} golden pictures")
    if report.edgetpu is not None:
        state = "compiled" if report.edgetpu.compiler else "checked, not compiled"
        say(f"edge tpu {report.edgetpu.operators} operators, all predicted to run there; {state}")
        if report.edgetpu.differences:
            say(f"         the compiler left {len(report.edgetpu.differences)} of them on the processor")
    say(f"next     edgerec predict {report.bundle} PICTURE")
