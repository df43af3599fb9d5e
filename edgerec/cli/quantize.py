"""``edgerec quantize``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, parity_table, progress, say, show_json

if TYPE_CHECKING:
    from edgerec.compress import QuantizeReport


def quantize(
    run: Path = typer.Argument(..., help="A finished run, or a model: .keras, .h5, or a SavedModel's folder."),
    method: str | None = typer.Option(None, help="qat trains with int8 in mind; ptq only calibrates. [default: qat]"),
    sparsity: float | None = typer.Option(None, help="Part of the weights pruned to zero first, as 0.5."),
    epochs: int | None = typer.Option(None, help="Passes of each fine-tuning. [default: 3]"),
    max_drop: float | None = typer.Option(None, help="Points of top-1 that int8 may lose. [default: 1]"),
    data: str | None = typer.Option(
        None, help="A model's pictures, as for train, with or without class folders; a run's, if they were moved."
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Folder for the run that is made of a model. [default: beside it]"
    ),
    normalise: str | None = typer.Option(
        None, help="What a model expects of pixels: unit, signed or pixels. [default: found out]"
    ),
    labels: Path | None = typer.Option(None, help="A model's labels, one a line. [default: the class folders]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the variant."),
    json: bool = JsonOption,
) -> None:
    """Make a full-int8 model of a run or of another Keras model, and compare it with the float one."""
    from edgerec.errors import GateError

    with progress() as listener:
        from edgerec.compress import quantize as compress
        from edgerec.compress.adopt import adopted, is_model

        if is_model(run):
            run = adopted(
                run, data, out, normalise=normalise, labels=labels, overwrite=overwrite, listener=listener
            ).path
        elif out or normalise or labels:
            raise typer.BadParameter(f"{run} is no model file, which --out, --normalise and --labels are for")
        try:
            report = compress(
                run,
                method,
                sparsity=sparsity,
                epochs=epochs,
                max_drop=max_drop,
                data=data,
                overwrite=overwrite,
                listener=listener,
            )
        except GateError as error:
            _show(error.report, json)
            raise
    _show(report, json)
    if not json:
        say(f"next     edgerec export {run} --target rpi")


def _show(report: QuantizeReport, json: bool) -> None:
    if json:
        show_json(report.to_dict())
        return
    parity_table([row.to_dict() for row in report.forms])
    change = f"{-report.drop_points:+.2f} points of top-1 against float on {report.images} held-out images"
    say(f"variant  {report.path}  ({change})")
    if report.sparsity > 0.05:
        say(f"sparsity {report.sparsity:.1%} of the weights are zero")
