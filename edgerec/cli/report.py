"""Implement the ``edgerec report`` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.options import MOVED_DATA_HELP
from edgerec.cli.output import JsonOption, progress, say, show_json

if TYPE_CHECKING:
    from edgerec.report import ReportContent


def report(
    run: Path = typer.Argument(..., metavar="RUN", help="A finished or unfinished run."),
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="FILE", help="Output HTML file. [default: RUN/report.html]"
    ),
    data: list[str] | None = typer.Option(None, metavar="DATA", help=MOVED_DATA_HELP),
    images: bool = typer.Option(
        True,
        "--images/--no-images",
        help="Include images in the report. --no-images omits the images, their file names and all private paths.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing HTML file."),
    json: bool = JsonOption,
) -> None:
    """Write a self-contained HTML report for a run.

    The report covers data, learning curves, misclassified images, calibration, variants and recommended next steps.
    """
    with progress() as listener:
        from edgerec.report import write_report

        result = write_report(run, out, data=data or None, images=images, overwrite=overwrite, listener=listener)
    if json:
        show_json(result.to_dict())
    else:
        _show(result)


def _show(result: ReportContent) -> None:
    if result.top1 is not None:
        say(
            f"top-1    {result.top1.value:.2%} of {result.top1.images} test images "
            f"(95 % confidence: {result.top1.low:.2%} to {result.top1.high:.2%})"
        )
    for row in result.calibration:
        say(f"ece      {row.before.ece:.2%}, {row.after.ece:.2%} with temperature {row.temperature:g}: {row.model}")
    for text in result.missing:
        say(f"missing  {text}")
    say(f"report   {result.page}  ({result.page_bytes:,} bytes)")
    for step in result.next:
        say(f"next     {step.why}{f': {step.command}' if step.command else ''}")
