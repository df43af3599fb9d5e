"""``edgerec parity``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, progress, say, show_json, table

if TYPE_CHECKING:
    from edgerec.compress.layer_comparison.diagnose import ParityReport


def parity(
    run: Path = typer.Argument(..., help="A finished run with a variant that edgerec quantize made."),
    variant: str | None = typer.Option(None, help="By default the int8 one with the best validation top-1."),
    images: int = typer.Option(64, min=1, help="How many validation pictures go through the layers."),
    data: list[str] | None = typer.Option(None, help="New location of the run's images, if they were moved."),
    out: Path | None = typer.Option(None, help="Draw the layers into this PNG."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the PNG."),
    json: bool = JsonOption,
) -> None:
    """Show where a compressed model leaves the float one, layer by layer, and what is wrong."""
    from edgerec.utils.atomic import checked_output, refuse_existing

    if out is not None:
        refuse_existing(checked_output(out, [data], suffixes=(".png",)), overwrite)
    with progress() as listener:
        from edgerec.compress.layer_comparison.diagnose import draw_layers
        from edgerec.compress.layer_comparison.diagnose import parity as compare

        report = compare(run, variant, images=images, data=data or None, listener=listener)
        if out is not None:
            draw_layers(report, out)
    if json:
        show_json(report.to_dict())
    else:
        _show(report)


def _show(report: ParityReport) -> None:
    from edgerec.compress.layer_comparison.findings import LOW_DB, costliest

    table(
        ("layer", "operator", "sqnr dB", "0 to 50 dB", "own", "alone", "weights", "clipped", "range"),
        [
            (
                layer.name,
                layer.operator.lower(),
                _decibels(layer.sqnr_db),
                _bar(layer.sqnr_db),
                _decibels(layer.own_db),
                _decibels(layer.alone_db),
                _decibels(layer.weight_db),
                "–" if layer.clipped is None else f"{layer.clipped:.2%}",
                "–" if layer.range_used is None else f"{layer.range_used:.0%}",
            )
            for layer in report.layers
        ],
        optional=("range", "0 to 50 dB", "clipped", "weights"),
    )
    say(f"sqnr     of {report.variant} against its {report.reference}, on {report.images} validation pictures")
    say("own      the layer by itself, given float's inputs; alone: that noise at the logits, all others float")
    if report.reference == "float twin":
        say("twin     its weights were fine-tuned, so it is compared with itself, activations not rounded")
    if report.unmatched:
        say(f"missing  {report.unmatched} operators have no counterpart in the float model")
    say(
        f"answers  {report.agreement:.2%} as float on {report.val_images} validation pictures; "
        f"top-1 {report.float_top1:.2%} float, {report.top1:.2%} {report.variant}"
    )
    for finding in report.findings:
        say(f"found    {finding.text}")
    if not report.findings and (worst := costliest(report.layers)):
        say(f"healthy  every layer has {LOW_DB:g} dB; {worst.name} costs most, {worst.alone_db:.1f} dB at the logits")


def _decibels(value: float | None) -> str:
    from edgerec.compress.layer_comparison.runner import EXACT_DB

    if value is None:
        return "–"
    return "exact" if value >= EXACT_DB else f"{value:.1f}"


def _bar(value: float | None) -> str:
    """Ten cells for 50 dB, in halves."""
    halves = round(min(max(value or 0.0, 0.0), 50.0) / 2.5)
    return ("█" * (halves // 2) + "▌" * (halves % 2)).ljust(10)
