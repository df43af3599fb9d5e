"""The command ``edgerec evaluate``."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.import_ import check_choices
from edgerec.cli.output import JsonOption, progress, say, show_json, table

# Group of options in --help.
_TFLITE = "For a .tflite file without a bundle"


def evaluate(
    model: Path = typer.Argument(..., metavar="RUN|BUNDLE|MODEL", help="A run, a bundle or a .tflite file."),
    data: list[str] | None = typer.Option(
        None,
        metavar="DATA",
        help="Data set to evaluate on, in a format that 'edgerec train' accepts. [default: the images of the run]",
    ),
    split: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Split to evaluate on: train, val, test or all. "
        "[default: images that the model was not trained on, or all images if the training images are unknown]",
    ),
    json: bool = JsonOption,
    labels: Path | None = typer.Option(
        None,
        metavar="FILE|folders",
        help="File with the labels in the order of the outputs, or 'folders' to use the sorted names of the class "
        "folders. [default: the labels in the file's metadata]",
        rich_help_panel=_TFLITE,
    ),
    normalise: str | None = typer.Option(
        None,
        metavar="NAME|NUMBERS",
        help="Normalization that a float model expects (see 'edgerec import --help'): unit, signed, pixels, tf, torch, "
        "caffe, MEAN,STD or R,G,B/R,G,B. [default: according to the file's metadata]",
        rich_help_panel=_TFLITE,
    ),
    activation: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Function that converts the model's outputs to scores: none, softmax or sigmoid. "
        "[default: none if the outputs are probabilities, otherwise softmax]",
        rich_help_panel=_TFLITE,
    ),
    fit: str | None = typer.Option(
        None,
        metavar="NAME",
        help="How to fit an image with another aspect ratio to the input: crop (the center), stretch or pad (with "
        "black). [default: see 'edgerec import --help']",
        rich_help_panel=_TFLITE,
    ),
) -> None:
    """Measure the accuracy, and precision and recall per class."""
    if split not in (None, "train", "val", "test", "all"):
        raise typer.BadParameter(f"unknown split {split!r}, expected train, val, test or all", param_hint="--split")
    check_choices(activation, fit)
    with progress() as listener:
        from typing import cast

        from edgerec.contract.preprocess import Fit
        from edgerec.train.evaluate import evaluate as measure

        report = measure(
            model,
            data or None,
            split=split,
            normalise=normalise,
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
