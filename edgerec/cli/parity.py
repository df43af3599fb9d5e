"""Implement the ``edgerec parity`` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.options import MOVED_DATA_HELP
from edgerec.cli.output import JsonOption, progress, say, show_json, table

if TYPE_CHECKING:
    from edgerec.compress.layer_comparison.diagnose import ParityReport


def parity(
    run: Path = typer.Argument(..., metavar="RUN", help="Finished run with a variant created by 'edgerec quantize'."),
    variant: str | None = typer.Option(
        None, metavar="NAME", help="Variant to compare. [default: the int8 variant with the best validation accuracy]"
    ),
    images: int = typer.Option(64, min=1, metavar="N", help="Number of validation images used to compare the layers."),
    data: list[str] | None = typer.Option(None, metavar="DATA", help=MOVED_DATA_HELP),
    out: Path | None = typer.Option(None, metavar="PNG", help="Plot the layers to this PNG file."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing PNG file."),
    json: bool = JsonOption,
) -> None:
    """Compare a compressed model with the float model layer by layer.

    The command prints each layer's signal-to-quantization-noise ratio (SQNR) and the likely causes of errors.
    """
    from edgerec.utils.atomic import checked_output, refuse_existing

    if out is not None:
        refuse_existing(checked_output(out, [data], suffixes=(".png",)), overwrite)
    with progress() as listener:
        from edgerec.compress.layer_comparison.diagnose import draw_layers
        from edgerec.compress.layer_comparison.diagnose import parity as compare_layers

        report = compare_layers(run, variant, images=images, data=data or None, listener=listener)
        if out is not None:
            draw_layers(report, out)
    if json:
        show_json(report.to_dict())
    else:
        _show(report)


def _show(report: ParityReport) -> None:
    from edgerec.compress.layer_comparison.findings import LOW_DB, costliest
    from edgerec.compress.layer_comparison.runner import DEQUANTIZED

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
    say(f"sqnr     of {report.variant} compared with its {report.reference}, on {report.images} validation images")
    say("own      SQNR of the layer with float inputs; alone: SQNR of the logits if only this layer is quantized")
    if report.reference == DEQUANTIZED:
        say("note     the reference is the variant with float activations, because fine-tuning changed its weights")
    if report.unmatched:
        say(f"missing  {report.unmatched} operators have no equivalent in the float model")
    say(
        f"agrees   same predicted label as float on {report.agreement:.2%} of {report.val_images} validation images; "
        f"top-1 {report.float_top1:.2%} float, {report.top1:.2%} {report.variant}"
    )
    for finding in report.findings:
        say(f"finding  {finding.text}")
    if not report.findings and (worst := costliest(report.layers)):
        say(
            f"healthy  each layer has at least {LOW_DB:g} dB; "
            f"lowest at the logits: {worst.name}, {worst.alone_db:.1f} dB"
        )


def _decibels(value: float | None) -> str:
    from edgerec.compress.layer_comparison.runner import EXACT_DB

    if value is None:
        return "–"
    return "exact" if value >= EXACT_DB else f"{value:.1f}"


def _bar(value: float | None) -> str:
    """Return a bar of up to ten characters that represents a value from 0 to 50 dB."""
    halves = round(min(max(value or 0.0, 0.0), 50.0) / 2.5)
    return ("█" * (halves // 2) + "▌" * (halves % 2)).ljust(10)
