"""The command ``edgerec doctor``."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, say, show_json, show_log

if TYPE_CHECKING:
    from edgerec.doctor import DoctorReport, Finding

_SIGNS = {"ok": "✓", "note": "·", "problem": "✗"}


def doctor(
    target: str = typer.Option(
        "",
        "--target",
        "-t",
        metavar="NAME",
        help="Also check the requirements of this target: a name from edgerec targets, or a .toml file.",
    ),
    bundle: Path | None = typer.Option(
        None, metavar="BUNDLE", help="Also check the requirements of the target of this bundle."
    ),
    json: bool = JsonOption,
) -> None:
    """Check this machine, and print how to fix problems.

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
    width = max(len(finding.what) for finding in report.findings)
    for finding in report.findings:
        _show_finding(finding, signs[finding.state], width, "->" if ascii_only else "→")
    states = [str(finding.state) for finding in report.findings]
    problems, notes = states.count("problem"), states.count("note")
    say("")
    if problems:
        say(f"{problems} problem{'s' if problems > 1 else ''}; the fix is printed below each problem")
    else:
        note_count = f", {notes} note{'s' if notes > 1 else ''}" if notes else ""
        say(f"no problems{note_count}")


def _show_finding(finding: Finding, sign: str, width: int, arrow: str) -> None:
    head = f"{sign} {finding.what:<{width}}  "
    indent = " " * len(head)
    room = max(60, get_terminal_size().columns if sys.stdout.isatty() else 120)
    lines = textwrap.wrap(finding.detail, room, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
    for line in lines or [head]:
        say(line)
    if finding.fix:  # not wrapped, because people copy it
        say(f"{indent}{arrow} {finding.fix}")
