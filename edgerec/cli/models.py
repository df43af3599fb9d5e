"""Implement the ``edgerec models`` command."""

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
        "",
        metavar="NAME",
        help="Architecture to build and describe: a name from the list, or a function in your own file, such as "
        "my_net.py:build (the file is executed). [default: list all architectures]",
    ),
    input_size: int | None = typer.Option(
        None, metavar="PIXELS", help="Width and height of the model's input, in pixels. [default: 96]"
    ),
    width: float | None = typer.Option(
        None, metavar="FACTOR", help="Width multiplier for the number of channels. [default: 1]"
    ),
    classes: int | None = typer.Option(None, metavar="N", help="Number of classes. [default: 10]"),
    target: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Recommend architectures for this target and estimate their latency (see 'edgerec targets').",
    ),
    plot: Path | None = typer.Option(None, metavar="PNG", help="Plot all architectures to this PNG file."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing PNG file."),
    json: bool = JsonOption,
) -> None:
    """List architectures with their int8 sizes and supported targets."""
    options: dict[str, Any] = {"input_size": input_size, "width": width, "classes": classes}
    options = {key: value for key, value in options.items() if value is not None}
    if target is not None:
        if name or plot or width or classes:
            raise typer.BadParameter(
                "--target can only be combined with --input-size and --json: omit the other options",
                param_hint="--target",
            )
        with progress() as listener:
            from edgerec.catalog.recommendations import recommendations

            rows = recommendations(target, input_size=input_size, listener=listener)
        show_json([row.to_dict() for row in rows]) if json else _recommend(rows, target)
        return
    if not name:
        if options:
            raise typer.BadParameter(
                "--input-size, --width and --classes require the name of an architecture: add NAME", param_hint="NAME"
            )
        from edgerec.catalog.architectures import architectures

        reports = architectures()
        if plot is not None:
            _draw(reports, plot, overwrite)
        show_json([report.to_dict() for report in reports]) if json else _list(reports)
        return
    if plot is not None:
        raise typer.BadParameter(
            "--plot cannot be combined with NAME, because it plots all architectures: omit NAME", param_hint="--plot"
        )
    with progress() as listener:
        from edgerec.catalog.architectures import architecture

        report = architecture(name, **options, listener=listener)
    show_json(report.to_dict()) if json else _describe(report)


def _recommend(rows: Sequence[Recommendation], target: str) -> None:
    from edgerec.catalog.recommendations import ESTIMATES

    recommended = [row for row in rows if row.data]
    others = [row for row in rows if not row.data]
    conditions = ESTIMATES.get(target)
    say(f"{command('train', '--target', target)} chooses these architectures:")
    for row in recommended:
        for data in row.data:
            say(f"  {data}: {_summary(row)}")
    say("")
    _print_costs(recommended, conditions is not None)
    if others:
        say("")
        say(f"other architectures that run on {target}, at {others[0].report.input_size} px")
        _print_costs(others, conditions is not None)
    if conditions:
        say("")
        say(f"ms: latency for one image, {conditions}")
        say("    This is an estimate. Run 'edgerec benchmark' on the device to measure it.")
    else:
        say("")
        say(f"No latency estimate is available for {target}. Compare the multiply-adds instead.")


def _summary(row: Recommendation) -> str:
    report = row.report
    return f"{report.name}, width {report.width:g}, {report.input_size} px"


def _print_costs(rows: Sequence[Recommendation], estimated: bool) -> None:
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
            say(f"{_summary(row)} cannot run on the target: {row.refusal}")


def _draw(reports: Sequence[ArchitectureReport], path: Path, overwrite: bool) -> None:
    from edgerec.catalog.plot import architectures_plot
    from edgerec.utils.atomic import checked_output, refuse_existing

    refuse_existing(checked_output(path, suffixes=(".png",)), overwrite)
    architectures_plot(reports, path)


def _list(reports: Sequence[ArchitectureReport]) -> None:
    first = reports[0]
    table(
        ("architecture", "parameters", "multiply-adds", "int8 bytes", "min px", "imagenet", "methods", "targets"),
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
        optional=("methods", "min px", "imagenet", "parameters"),
    )
    size = f"{first.input_size}×{first.input_size} RGB images, {first.classes} classes, width {first.width:g}"
    say("")
    say(f"for {size}; for other sizes: edgerec models NAME --input-size 64 --width 0.5")


def _describe(report: ArchitectureReport) -> None:
    say(f"{report.name}: {report.about}" if report.about else report.name)
    size = f"{report.input_size}×{report.input_size} RGB images, {report.classes} classes, width {report.width:g}"
    widths = ", ".join(f"{width:g}" for width in report.imagenet_widths)
    lines = {
        "for": size,
        "parameters": f"{report.parameters:,}",
        "compute": f"{report.macs:,} multiply-adds per image",
        "int8": f"{report.int8_bytes:,} bytes",
        "min. input": f"{report.least_size_px} px",
        "imagenet": f"weights for width {widths}" if widths else "no weights",
        "methods": ", ".join(report.methods),
    }
    pairs(list(lines.items()), "  ", 12)
    pairs([(target, f"no: {reason}" if reason else "yes") for target, reason in report.targets.items()], "  ", 17)


def _targets(report: ArchitectureReport) -> str:
    """Describe the targets that can run an architecture, e.g. as ``all`` or ``not coral``.

    Targets with a common prefix such as ``coral`` are combined if none of them can run it.
    """
    names_by_prefix: dict[str, list[str]] = {}
    for name in report.targets:
        names_by_prefix.setdefault(name.partition("-")[0], []).append(name)
    unsupported = []
    for prefix, names in names_by_prefix.items():
        failing = [name for name in names if report.targets[name]]
        unsupported += [prefix] if len(failing) == len(names) else failing
    return "not " + ", ".join(unsupported) if unsupported else "all"
