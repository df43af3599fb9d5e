"""``edgerec predict``"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from edgerec.cli.output import chatter, say


def predict(
    bundle: Path = typer.Argument(..., help="A bundle's folder or .zip."),
    images: list[Path] = typer.Argument(..., help="Image files, or folders of images."),
    threshold: float | None = typer.Option(
        None, min=0, max=1, help="Score below which the label is unknown. [default: the bundle's]"
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
) -> None:
    """Classify image files."""
    from edgerec.camera.predict import predict as classify
    from edgerec.camera.sinks.console import JsonLines

    chatter()
    lines = JsonLines(sys.stdout)
    for result in classify(bundle, images, threshold=threshold):
        if json:
            lines.write(result)
            continue
        answer = result.classification
        best = ", ".join(f"{c.label} {c.score:.2f}" for c in answer.categories[:3])
        novelty = "" if answer.novelty is None else f"; novelty {answer.novelty:.2f}"
        say(f"{result.frame.source}  {answer.label}   ({best}{novelty})")
