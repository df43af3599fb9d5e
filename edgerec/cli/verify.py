"""``edgerec verify``"""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, chatter, say, show_json


def verify(
    bundle: Path = typer.Argument(..., help="A bundle's folder or .zip."),
    json: bool = JsonOption,
) -> None:
    """Check on this machine that a bundle is whole and answers as it did where it was made."""
    from edgerec.errors import EdgerecError
    from edgerec.runtime.golden import verify as check

    chatter()
    try:
        report = check(bundle)
    except EdgerecError as error:
        if not json:
            raise
        show_json({"ok": False, "bundle": str(bundle), "reason": str(error)})
        raise typer.Exit(1) from None
    if json:
        show_json(report.to_dict())
        return
    how = "bit for bit" if report.exact else f"within {report.max_difference:g} (allowed {report.tolerance:g})"
    say(f"ok: {report.files} files whole, {report.pictures} golden pictures equal {how}")
    say(f"made with {report.made_on.runtime} {report.made_on.version} on {report.made_on.machine}")
    say(f"here with {report.here.runtime} {report.here.version} on {report.here.machine}")
