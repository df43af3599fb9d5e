"""``edgerec evaluate``"""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.import_ import check_choices
from edgerec.cli.output import JsonOption, progress, say, show_json, table


def evaluate(
    model: Path = typer.Argument(..., help="A run, a bundle, or a .tflite file."),
    data: list[str] | None = typer.Option(None, help="Images to measure, as for train. [default: the run's images]"),
    split: str | None = typer.Option(
        None,
        help="Images to measure: train, val, test or all. "
        "[default: images that the model was not trained on; all, if the training images are not known]",
    ),
    normalise: str | None = typer.Option(
        None,
        help="Normalization for a bare float .tflite that does not state it, as for edgerec import: unit, signed, "
        "pixels, tf, torch, caffe, MEAN,STD or R,G,B/R,G,B.",
    ),
    activation: str | None = typer.Option(
        None,
        help="What turns the output of a bare .tflite into scores: none, softmax or sigmoid. "
        "[default: measured: none if the outputs are probabilities, otherwise softmax]",
    ),
    fit: str | None = typer.Option(
        None,
        help="How to fit an image with another aspect ratio to the input of a bare .tflite: crop (the center), stretch "
        "or pad (with black). [default: as for edgerec import]",
    ),
    labels: Path | None = typer.Option(
        None,
        help="Labels of a bare .tflite in the order of its outputs: a file, or 'folders' for the order of the data's "
        "classes. [default: the labels in the file's metadata]",
    ),
    json: bool = JsonOption,
) -> None:
    """Measure the accuracy, loss and per-class figures of a run, a bundle or a .tflite file."""
    if split not in (None, "train", "val", "test", "all"):
        raise typer.BadParameter(f"{split!r} is none of train, val, test, all", param_hint="--split")
    check_choices(activation, fit)
    with progress() as listener:
        from typing import cast

        from edgerec.contract.preprocess import Fit
        from edgerec.train.evaluate import evaluate as measure

        figures = measure(
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
        show_json(figures.to_dict())
        return
    table(
        ("label", "precision", "recall", "f1", "images"),
        [
            (label, f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['f1']:.3f}", str(row["support"]))
            for label, row in figures.per_class.items()
        ],
    )
    say(f"accuracy {figures.accuracy:.2%}, loss {figures.loss:.4f} {figures.measured}")
