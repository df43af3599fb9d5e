"""Implement the ``edgerec doctor`` command."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, say, show_json, show_log

if TYPE_CHECKING:
    from edgerec.doctor import CheckResult, DoctorReport

_SIGNS = {"ok": "✓", "note": "·", "problem": "✗"}


def doctor(
    target: str = typer.Option(
        "",
        "--target",
        "-t",
        metavar="NAME",
        help="Also check the requirements of this target: a name listed by 'edgerec targets', or a .toml file.",
    ),
    bundle: Path | None = typer.Option(
        None, metavar="BUNDLE", help="Also check the requirements of this bundle's target."
    ),
    json: bool = JsonOption,
) -> None:
    """Check this machine and suggest fixes for any problems.

    The checks include packages, runtimes, delegates, cameras, memory and temperature.
    """
    from edgerec.doctor import run_doctor

    show_log()
    report = run_doctor(target, bundle or "")
    if json:
        show_json(report.to_dict())
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(1)


def _show(report: DoctorReport) -> None:
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    signs = {state: state.ljust(7) for state in _SIGNS} if ascii_only else _SIGNS
    width = max(len(result.what) for result in report.results)
    for result in report.results:
        _show_result(result, signs[result.state], width, "->" if ascii_only else "→")
    states = [str(result.state) for result in report.results]
    problems, notes = states.count("problem"), states.count("note")
    say("")
    if problems:
        say(f"{problems} problem{'s' if problems > 1 else ''}; the suggested fix is shown below each problem")
    else:
        note_count = f", {notes} note{'s' if notes > 1 else ''}" if notes else ""
        say(f"no problems{note_count}")


def _show_result(result: CheckResult, sign: str, width: int, arrow: str) -> None:
    head = f"{sign} {result.what:<{width}}  "
    indent = " " * len(head)
    room = max(60, get_terminal_size().columns if sys.stdout.isatty() else 120)
    lines = textwrap.wrap(result.detail, room, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
    for line in lines or [head]:
        say(line)
    if result.fix:  # Commands are not wrapped so that users can copy them.
        say(f"{indent}{arrow} {result.fix}")
