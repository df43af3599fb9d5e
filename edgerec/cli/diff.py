"""Implement the ``edgerec diff`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, say, show_json, table

# Maximum number of classes to print. The JSON output contains all classes.
MAX_CLASSES = 5


def diff(
    first: Path = typer.Argument(..., metavar="FIRST", help="A finished run."),
    second: Path = typer.Argument(..., metavar="SECOND", help="A finished run to compare with the first one."),
    json: bool = JsonOption,
) -> None:
    """Compare the settings and results of two runs."""
    from edgerec.train.run_overview import diff_runs

    difference = diff_runs(first, second)
    if json:
        show_json(difference.to_dict())
        return
    if difference.settings:
        table(("setting", "first", "second"), [(s.key, str(s.first), str(s.second)) for s in difference.settings])
    else:
        say("both runs have the same settings")
    say("")
    table(
        ("result", "first", "second"),
        [(row.name, _value(row.name, row.first), _value(row.name, row.second)) for row in difference.figures],
    )
    changed = [row for row in difference.classes if row.first != row.second][:MAX_CLASSES]
    if changed:
        say("")
        table(
            ("recall of class", "first", "second"),
            [(row.name, _value("recall", row.first), _value("recall", row.second)) for row in changed],
        )
    say("")
    if not difference.same_test:
        say("warning  the runs were measured on different test images, so their accuracies cannot be compared")
    elif difference.accuracy_change is not None and difference.noise_points is not None:
        change, noise = difference.accuracy_change, difference.noise_points
        verdict = "not statistically significant" if abs(change) < noise else "statistically significant"
        verdict = verdict if change else "no change"
        say(f"accuracy {change:+.2f} points: {verdict} (95 % confidence: ±{noise:.2f} points)")


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.endswith(("accuracy", "top-1", "recall")):
        return f"{value:.2%}"
    return f"{value:,.5g}" if isinstance(value, float) else f"{value:,}"
