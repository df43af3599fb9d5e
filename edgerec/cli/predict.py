"""Implement the ``edgerec predict`` command."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from edgerec.cli.options import REDUCED_DECODING_HELP, THRESHOLD_HELP, AllowedSignersOption, RevokedKeysOption
from edgerec.cli.output import say, show_log


def predict(
    bundle: Path = typer.Argument(..., metavar="BUNDLE", help="Bundle folder or .zip file."),
    images: list[Path] = typer.Argument(..., metavar="IMAGE", help="Image files or folders of images."),
    threshold: float | None = typer.Option(
        None,
        min=0,
        max=1,
        metavar="SCORE",
        help=THRESHOLD_HELP,
    ),
    reduced_decoding: bool = typer.Option(False, "--reduced-decoding", help=REDUCED_DECODING_HELP),
    allowed_signers: Path | None = AllowedSignersOption,
    revoked_keys: Path | None = RevokedKeysOption,
    json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
) -> None:
    """Classify image files."""
    from edgerec.camera.predict import predict as classify
    from edgerec.camera.sinks.console import JsonLines

    show_log()
    lines = JsonLines(sys.stdout)
    results = classify(
        bundle,
        images,
        threshold=threshold,
        reduced_decoding=reduced_decoding,
        allowed_signers=allowed_signers,
        revoked_keys=revoked_keys,
    )
    for result in results:
        if json:
            lines.write(result)
            continue
        prediction = result.classification
        best = ", ".join(f"{c.label} {c.score:.2f}" for c in prediction.categories[:3])
        novelty = "" if prediction.novelty is None else f"; novelty {prediction.novelty:.2f}"
        say(f"{result.frame.origin}  {prediction.label}   ({best}{novelty})")
