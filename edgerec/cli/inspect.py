"""``edgerec inspect``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, chatter, say, show_json, table

if TYPE_CHECKING:
    from edgerec.tflite.inspection import InspectedTensor, InspectReport

LONGEST = 44


def inspect(
    model: Path = typer.Argument(..., help="A .tflite file, or a bundle."),
    target: str | None = typer.Option(
        None, "--target", "-t", help="Where each operator runs there, and all that it refuses: coral-usb, my.toml …"
    ),
    compiler: bool = typer.Option(True, help="Run the target's compiler where it is installed, and compare."),
    plot: Path | None = typer.Option(None, help="Draw the graph into this PNG."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the PNG."),
    json: bool = JsonOption,
) -> None:
    """Show a model's operators, arithmetic and memory, and what each target says to it."""
    from edgerec.tflite.inspection import inspect as look
    from edgerec.utils.atomic import checked_output, refuse_existing

    chatter()
    if plot is not None:
        refuse_existing(checked_output(plot, [model], suffixes=(".png",)), overwrite)
    report = look(model, target, compiler=compiler)
    if plot is not None:
        from edgerec.tflite.graph_plot import graph_plot

        graph_plot(report, plot)
    if json:
        show_json(report.to_dict())
    else:
        _show(report)


def _show(report: InspectReport) -> None:
    placed = report.edgetpu is not None
    table(
        ("operator", "layer", "gives", "parameters", "multiply-adds", *(("on",) if placed else ())),
        [
            (
                f"{operator.index:3} {operator.op}",
                _short(operator.layer),
                "×".join(map(str, operator.shape)),
                f"{operator.parameter_bytes:,}" if operator.parameter_bytes else "–",
                f"{operator.macs:,}" if operator.macs else "–",
                *((operator.on,) if placed else ()),
            )
            for operator in report.operators
        ],
    )
    say("")
    for what, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            say(f"{what:<8} {tensor.dtype} {list(tensor.shape)}{_scaled(tensor)}  {tensor.name}")
    if report.labels:
        say(f"labels   {len(report.labels)}: {', '.join(report.labels[:5])}{' …' if len(report.labels) > 5 else ''}")
    if report.normalise:
        say(f"pixels   {', '.join(f'(pixel - {mean:g}) / {std:g}' for mean, std in report.normalise)}")
    say(
        f"file     {report.size_bytes:,} bytes, {report.gzip_bytes:,} compressed, {report.parameter_bytes:,} of numbers"
    )
    say(f"compute  {report.macs:,} multiply-adds a picture, in {len(report.operators)} operators")
    say(f"memory   {report.arena_bytes:,} bytes for tensors; on a microcontroller {report.microcontroller_bytes:,}")
    if found := report.novelty:
        size, error = found["size_bytes"], found["threshold"]
        say(f"novelty  {found['model']}, {size:,} bytes: unknown above an error of {error:g}")
    for fault in report.metadata_faults:
        say(f"metadata cannot be used: {fault}")
    for finding in report.findings:
        say(f"refused  {finding}")
    _show_edgetpu(report)
    say("")
    for name, reason in report.targets.items():
        say(f"{name:<16} {f'no: {reason}' if reason else 'runs it'}")


def _show_edgetpu(report: InspectReport) -> None:
    diagnosis = report.edgetpu
    if diagnosis is None:
        return
    there = sum(operator.on == "edgetpu" for operator in report.operators)
    left = (
        f", {diagnosis.cpu_macs / diagnosis.macs:.1%} of the arithmetic stays on the processor"
        if diagnosis.macs
        else ""
    )
    say(f"edge tpu {there} of {len(report.operators)} operators{left}")
    for remark in diagnosis.remarks:
        say(f"         {remark}")
    refused = {finding.index for finding in report.findings}
    behind = [operator.index for operator in report.operators if operator.on == "cpu" and operator.index not in refused]
    if behind and len(behind) < len(report.operators):
        say(f"cpu      {len(behind)} behind what is refused: {', '.join(map(str, behind))}")
    if report.compiler is not None:
        wrong = len(report.compiler.differences)
        verdict = f"did otherwise for {wrong} operators" if wrong else "did the same"
        say(f"compiler {verdict} ({report.compiler.compiler})")
    elif report.compiler_error:
        say(f"compiler {report.compiler_error}")


def _scaled(tensor: InspectedTensor) -> str:
    if not tensor.scales:
        return ""
    zero = tensor.zero_points[0] if tensor.zero_points else 0
    return f", scale {tensor.scales[0]:g}, zero point {zero}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
