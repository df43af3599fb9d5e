"""Implement the ``edgerec ensemble`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, say, show_json, show_log, suggest


def ensemble(
    bundles: list[Path] = typer.Argument(
        ..., metavar="BUNDLE|RUN", help="At least two bundles or runs with the same labels."
    ),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Output folder or .zip file for the bundle."),
    combine: str = typer.Option(
        "mean",
        metavar="NAME",
        help="How to combine the models' outputs: mean (average the scores) or vote (a label's score is the fraction "
        "of models that predict it).",
    ),
    target: str | None = typer.Option(
        None,
        "--target",
        "-t",
        metavar="NAME",
        help="Target: a name listed by 'edgerec targets', or a .toml file. [default: the bundles' target, or desktop "
        "for runs]",
    ),
    threshold: float = typer.Option(
        0.0,
        min=0,
        max=1,
        metavar="SCORE",
        help="Predict 'unknown' for images whose top score is below this value.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing bundle."),
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
