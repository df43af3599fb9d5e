"""``edgerec ensemble``"""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, chatter, say, show_json, suggest


def ensemble(
    bundles: list[Path] = typer.Argument(..., help="Two bundles or runs, or more, of the same labels."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the new bundle, or a .zip."),
    combine: str = typer.Option("mean", help="Scores are their mean; or vote, the part of the models that say so."),
    target: str | None = typer.Option(None, "--target", "-t", help="[default: the bundles'; of runs, desktop]"),
    threshold: float = typer.Option(0.0, min=0, max=1, help="Below this score the bundle answers unknown."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the bundle."),
    json: bool = JsonOption,
) -> None:
    """Write one bundle of several, whose models answer together."""
    from edgerec.export import ensemble as write

    chatter()
    report = write(bundles, out, combine=combine, target=target, threshold=threshold, overwrite=overwrite)
    if json:
        show_json(report.to_dict())
        return
    say(f"bundle   {report.bundle}  ({report.models} models, {report.combine}, {report.size_bytes:,} bytes)")
    say(f"verified {report.golden} golden images")
    suggest("evaluate", report.bundle, "--data", "FOLDER")
