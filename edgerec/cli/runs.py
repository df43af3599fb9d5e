"""Implement the ``edgerec runs`` command."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, say, show_json, table
from edgerec.utils.command_line import command


def runs(
    folder: Path = typer.Argument(
        Path("runs"), metavar="FOLDER", help="Folder to search for runs (up to three levels deep)."
    ),
    json: bool = JsonOption,
) -> None:
    """List the runs in a folder and their accuracy."""
    from edgerec.train.run_overview import list_runs

    rows = list_runs(folder)
    if json:
        show_json([row.to_dict() for row in rows])
        return
    if not rows:
        say(f"{folder} contains no runs; create one with {command('train', 'DATA', '--out', folder / 'NAME')}")
        return
    table(
        ("run", "state", "architecture", "float", "int8", "bytes", "changed"),
        [
            (
                row.run,
                row.state,
                row.architecture,
                _percent(row.accuracy),
                _percent(row.variant_top1),
                f"{row.variant_bytes:,}" if row.variant_bytes else "–",
                time.strftime("%Y-%m-%d", time.localtime(row.modified_s)),
            )
            for row in rows
        ],
        optional=("changed", "architecture"),
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
