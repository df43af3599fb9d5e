"""``edgerec models``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.output import JsonOption, pairs, progress, say, show_json, table
from edgerec.utils.command_line import command

if TYPE_CHECKING:
    from edgerec.catalog.architectures import ArchitectureReport
    from edgerec.catalog.recommendations import Recommendation


def models(
    name: str = typer.Argument(
        "", help="One of them, or a function of yours, as my_net.py:build, whose code is run. [default: lists all]"
    ),
    input_size: int | None = typer.Option(None, help="Side of its input, pixels. [default: 96]"),
    width: float | None = typer.Option(None, help="Factor on its number of channels. [default: 1]"),
    classes: int | None = typer.Option(None, help="How many classes it tells apart. [default: 10]"),
    target: str | None = typer.Option(
        None, help="Recommend architectures for this target (edgerec targets), with the estimated time for one image."
    ),
    plot: Path | None = typer.Option(None, help="Draw the list into this PNG."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the PNG."),
    json: bool = JsonOption,
) -> None:
    """Show the architectures that --arch takes, what they cost as int8, and what takes and runs them."""
    given: dict[str, Any] = {"input_size": input_size, "width": width, "classes": classes}
    changed = {key: value for key, value in given.items() if value is not None}
    if target is not None:
        if name or plot or width or classes:
            raise typer.BadParameter("can be combined with --input-size and --json only", param_hint="--target")
        with progress() as listener:
            from edgerec.catalog.recommendations import recommendations

            rows = recommendations(target, input_size=input_size, listener=listener)
        show_json([row.to_dict() for row in rows]) if json else _recommend(rows, target)
        return
    if not name:
        if changed:
            raise typer.BadParameter("the list has one size; for another, name one architecture", param_hint="NAME")
        from edgerec.catalog.architectures import architectures

        reports = architectures()
        if plot is not None:
            _draw(reports, plot, overwrite)
        show_json([report.to_dict() for report in reports]) if json else _list(reports)
        return
    if plot is not None:
        raise typer.BadParameter("it draws the list: leave the name out", param_hint="--plot")
    with progress() as listener:
        from edgerec.catalog.architectures import architecture

        report = architecture(name, **changed, listener=listener)
    show_json(report.to_dict()) if json else _describe(report)


def _recommend(rows: Sequence[Recommendation], target: str) -> None:
    from edgerec.catalog.recommendations import ESTIMATES

    chosen = [row for row in rows if row.data]
    others = [row for row in rows if not row.data]
    conditions = ESTIMATES.get(target)
    say(f"{command('train', '--target', target)} chooses these architectures:")
    for row in chosen:
        for data in row.data:
            say(f"  {data}: {_network(row)}")
    say("")
    _costs(chosen, conditions is not None)
    if others:
        say("")
        say(f"other architectures that run on {target}, at {others[0].report.input_size} px")
        _costs(others, conditions is not None)
    if conditions:
        say("")
        say(f"ms: time for one image, {conditions}")
        say("    This is not a measurement. Run edgerec benchmark on the device to measure.")
    else:
        say("")
        say(f"There is no estimate of the time on {target}; compare the multiply-adds.")


def _network(row: Recommendation) -> str:
    report = row.report
    return f"{report.name}, width {report.width:g}, {report.input_size} px"


def _costs(rows: Sequence[Recommendation], estimated: bool) -> None:
    table(
        ("architecture", "width", "px", *(["ms"] if estimated else []), "multiply-adds", "int8 bytes"),
        [
            (
                row.report.name,
                f"{row.report.width:g}",
                str(row.report.input_size),
                *([f"{row.estimated_ms:.3g}"] if row.estimated_ms is not None else []),
                f"{row.report.macs:,}",
                f"{row.report.int8_bytes:,}",
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.refusal:
            say(f"{_network(row)} cannot run on the target: {row.refusal}")


def _draw(reports: Sequence[ArchitectureReport], path: Path, overwrite: bool) -> None:
    from edgerec.catalog.plot import architectures_plot
    from edgerec.utils.atomic import checked_output, refuse_existing

    refuse_existing(checked_output(path, suffixes=(".png",)), overwrite)
    architectures_plot(reports, path)


def _list(reports: Sequence[ArchitectureReport]) -> None:
    first = reports[0]
    table(
        ("architecture", "parameters", "multiply-adds", "int8 bytes", "least px", "imagenet", "methods", "targets"),
        [
            (
                report.name,
                f"{report.parameters:,}",
                f"{report.macs:,}",
                f"{report.int8_bytes:,}",
                str(report.least_size_px),
                "yes" if report.imagenet_widths else "–",
                "all" if "prune+qat" in report.methods else "only " + ", ".join(report.methods),
                _targets(report),
            )
            for report in reports
        ],
        optional=("methods", "least px", "imagenet", "parameters"),
    )
    size = f"{first.input_size}×{first.input_size} RGB pictures, {first.classes} classes, width {first.width:g}"
    say("")
    say(f"for {size}; for others: edgerec models NAME --input-size 64 --width 0.5")


def _describe(report: ArchitectureReport) -> None:
    say(f"{report.name}: {report.about}" if report.about else report.name)
    size = f"{report.input_size}×{report.input_size} RGB pictures, {report.classes} classes, width {report.width:g}"
    widths = ", ".join(f"{width:g}" for width in report.imagenet_widths)
    lines = {
        "for": size,
        "parameters": f"{report.parameters:,}",
        "compute": f"{report.macs:,} multiply-adds a picture",
        "int8": f"{report.int8_bytes:,} bytes",
        "least input": f"{report.least_size_px} px",
        "imagenet": f"weights for width {widths}" if widths else "no weights",
        "methods": ", ".join(report.methods),
    }
    pairs(list(lines.items()), "  ", 12)
    pairs([(target, f"no: {reason}" if reason else "runs it") for target, reason in report.targets.items()], "  ", 17)


def _targets(report: ArchitectureReport) -> str:
    """Those that cannot run it; where no name of a kind can, the kind."""
    kinds: dict[str, list[str]] = {}
    for name in report.targets:
        kinds.setdefault(name.partition("-")[0], []).append(name)
    refusing = []
    for kind, names in kinds.items():
        wrong = [name for name in names if report.targets[name]]
        refusing += [kind] if len(wrong) == len(names) else wrong
    return "not " + ", ".join(refusing) if refusing else "all"
