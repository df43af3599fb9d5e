"""Implement the ``edgerec evaluate`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.import_ import check_choices
from edgerec.cli.options import ACTIVATION_HELP, FIT_HELP
from edgerec.cli.output import JsonOption, progress, say, show_json, table

_TFLITE = "For a .tflite file without a bundle"


def evaluate(
    model: Path = typer.Argument(..., metavar="RUN|BUNDLE|MODEL", help="A run, a bundle or a .tflite file."),
    data: list[str] | None = typer.Option(
        None,
        metavar="DATA",
        help="Data set to evaluate on, in any format that 'edgerec train' accepts. [default: the run's images]",
    ),
    split: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Split to evaluate on: train, val, test or all. "
        "[default: the images that the model was not trained on, or all images if these are not known]",
    ),
    json: bool = JsonOption,
    labels: Path | None = typer.Option(
        None,
        metavar="FILE|folders",
        help="File with the labels in the order of the model's outputs, or 'folders' to use the sorted class folder "
        "names. [default: the labels in the model's metadata]",
        rich_help_panel=_TFLITE,
    ),
    normalize: str | None = typer.Option(
        None,
        metavar="NAME|NUMBERS",
        help="Normalization that a float model expects (see 'edgerec import --help'): unit, signed, pixels, tf, torch, "
        "caffe, MEAN,STD or R,G,B/R,G,B. [default: the normalization in the model's metadata]",
        rich_help_panel=_TFLITE,
    ),
    activation: str | None = typer.Option(None, metavar="NAME", help=ACTIVATION_HELP, rich_help_panel=_TFLITE),
    fit: str | None = typer.Option(None, metavar="NAME", help=FIT_HELP, rich_help_panel=_TFLITE),
) -> None:
    """Measure accuracy and per-class precision and recall."""
    if split not in (None, "train", "val", "test", "all"):
        raise typer.BadParameter(f"expected train, val, test or all, got {split!r}", param_hint="--split")
    check_choices(activation, fit)
    with progress() as listener:
        from typing import cast

        from edgerec.contract.preprocess import Fit
        from edgerec.train.evaluate import evaluate as measure

        report = measure(
            model,
            data or None,
            split=split,
            normalize=normalize,
            activation=activation,
            fit=cast(Fit | None, fit),
            labels=labels,
            listener=listener,
        )
    if json:
        show_json(report.to_dict())
        return
    table(
        ("label", "precision", "recall", "f1", "images"),
        [
            (label, f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['f1']:.3f}", str(row["support"]))
            for label, row in report.per_class.items()
        ],
    )
    say(f"accuracy {report.accuracy:.2%}, loss {report.loss:.4f} {report.measured}")
