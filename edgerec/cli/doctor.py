"""``edgerec doctor``"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, chatter, say, show_json

if TYPE_CHECKING:
    from edgerec.doctor import DoctorReport, Finding

_SIGNS = {"ok": "✓", "note": "·", "problem": "✗"}


def doctor(
    target: str = typer.Option("", "--target", "-t", help="Does this machine fit it? A name, or a .toml file."),
    bundle: Path | None = typer.Option(None, help="Does this machine fit the target of that bundle?"),
    json: bool = JsonOption,
) -> None:
    """Look at this machine: packages, runtimes, delegates, cameras, memory, heat; and what mends what is wrong."""
    from edgerec.doctor import run_doctor

    chatter()
    report = run_doctor(target, bundle or "")
    if json:
        show_json(report.to_dict())
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(1)


def _show(report: DoctorReport) -> None:
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    signs = {state: state.ljust(7) for state in _SIGNS} if plain else _SIGNS
    width = max(len(finding.what) for finding in report.findings)
    for finding in report.findings:
        _show_finding(finding, signs[finding.state], width, "->" if plain else "→")
    states = [str(finding.state) for finding in report.findings]
    problems, notes = states.count("problem"), states.count("note")
    say("")
    if problems:
        say(f"{problems} problem{'s' if problems > 1 else ''}; what mends each stands below it")
    else:
        say(f"no problem{f', {notes} to know' if notes else ''}")


def _show_finding(finding: Finding, sign: str, width: int, arrow: str) -> None:
    head = f"{sign} {finding.what:<{width}}  "
    indent = " " * len(head)
    room = max(60, get_terminal_size().columns if sys.stdout.isatty() else 120)
    lines = textwrap.wrap(finding.detail, room, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
    for line in lines or [head]:
        say(line)
    if finding.mend:  # in one line, as it is copied
        say(f"{indent}{arrow} {finding.mend}")
