"""``edgerec report``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, progress, say, show_json

if TYPE_CHECKING:
    from edgerec.report import RunReport


def report(
    run: Path = typer.Argument(..., help="A run, finished or not."),
    out: Path | None = typer.Option(None, "--out", "-o", help="The page. [default: RUN/report.html]"),
    data: list[str] | None = typer.Option(None, help="New location of the run's images, if they were moved."),
    pictures: bool = typer.Option(
        True, "--pictures/--no-pictures", help="Without: no picture, none of their names, no folder."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the page."),
    json: bool = JsonOption,
) -> None:
    """Write one self-contained HTML page of a run: data, curves, mistakes, calibration, variants, what to do next."""
    with progress() as listener:
        from edgerec.report import write_report

        made = write_report(run, out, data=data or None, pictures=pictures, overwrite=overwrite, listener=listener)
    if json:
        show_json(made.to_dict())
    else:
        _show(made)


def _show(made: RunReport) -> None:
    if made.top1 is not None:
        say(
            f"top-1    {made.top1.value:.2%} of {made.top1.images} held-out images "
            f"(95 % sure: {made.top1.low:.2%} to {made.top1.high:.2%})"
        )
    for row in made.calibration:
        say(f"ece      {row.before.ece:.2%}, {row.after.ece:.2%} with temperature {row.temperature:g}: {row.form}")
    for text in made.missing:
        say(f"missing  {text}")
    say(f"report   {made.page}  ({made.page_bytes:,} bytes)")
    for step in made.next:
        say(f"next     {step.why}{f': {step.command}' if step.command else ''}")
