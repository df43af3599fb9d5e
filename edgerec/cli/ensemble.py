"""The command ``edgerec ensemble``."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, say, show_json, show_log, suggest


def ensemble(
    bundles: list[Path] = typer.Argument(
        ..., metavar="BUNDLE|RUN", help="At least two bundles or runs with the same labels."
    ),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the new bundle, or a .zip."),
    combine: str = typer.Option(
        "mean",
        metavar="NAME",
        help="How to combine the outputs: mean of the scores, or vote (the score of a label is the fraction of the "
        "models that predict this label).",
    ),
    target: str | None = typer.Option(
        None,
        "--target",
        "-t",
        metavar="NAME",
        help="Target device. [default: the target of the bundles, or desktop for runs]",
    ),
    threshold: float = typer.Option(
        0.0,
        min=0,
        max=1,
        metavar="SCORE",
        help="Predict 'unknown' for images whose best score is below this value.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the bundle."),
    json: bool = JsonOption,
) -> None:
    """Combine several models into one bundle."""
    from edgerec.export import ensemble as write_ensemble

    show_log()
    report = write_ensemble(bundles, out, combine=combine, target=target, threshold=threshold, overwrite=overwrite)
    if json:
        show_json(report.to_dict())
        return
    say(f"bundle   {report.bundle}  ({report.models} models, {report.combine}, {report.size_bytes:,} bytes)")
    say(f"verified {report.golden} golden images")
    suggest("evaluate", report.bundle, "--data", "FOLDER")
