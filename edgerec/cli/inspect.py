"""Implement the ``edgerec inspect`` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, say, show_json, show_log, table

if TYPE_CHECKING:
    from edgerec.tflite.inspection import InspectedTensor, InspectReport

# Maximum length of layer names in the printed table, in characters.
MAX_NAME = 44


def inspect(
    model: Path = typer.Argument(..., metavar="MODEL.tflite|BUNDLE", help="A .tflite file or a bundle."),
    target: str | None = typer.Option(
        None,
        "--target",
        "-t",
        metavar="NAME",
        help="Show which operators this target supports: a name listed by 'edgerec targets', or a .toml file. "
        "[default: a summary of all targets]",
    ),
    compiler: bool = typer.Option(
        True,
        help="Run the target's compiler, if installed, and compare its operator placement with edgerec's prediction.",
    ),
    plot: Path | None = typer.Option(None, metavar="PNG", help="Draw the graph to this PNG file."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing PNG file."),
    json: bool = JsonOption,
) -> None:
    """Show a model's operators, multiply-adds, memory use and targets."""
    from edgerec.tflite.inspection import inspect as inspect_model
    from edgerec.utils.atomic import checked_output, refuse_existing

    show_log()
    if plot is not None:
        refuse_existing(checked_output(plot, [model], suffixes=(".png",)), overwrite)
    report = inspect_model(model, target, compiler=compiler)
    if plot is not None:
        from edgerec.tflite.graph_plot import graph_plot

        graph_plot(report, plot)
    if json:
        show_json(report.to_dict())
    else:
        _show(report)


def _show(report: InspectReport) -> None:
    has_placement = report.edgetpu is not None
    table(
        ("operator", "layer", "output", "parameters", "multiply-adds", *(("on",) if has_placement else ())),
        [
            (
                f"{operator.index:3} {operator.op}",
                _short(operator.layer),
                "×".join(map(str, operator.shape)),
                f"{operator.parameter_bytes:,}" if operator.parameter_bytes else "–",
                f"{operator.macs:,}" if operator.macs else "–",
                *((operator.on,) if has_placement else ()),
            )
            for operator in report.operators
        ],
    )
    say("")
    for kind, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            say(f"{kind:<8} {tensor.dtype} {list(tensor.shape)}{_quantization(tensor)}  {tensor.name}")
    if report.labels:
        say(f"labels   {len(report.labels)}: {', '.join(report.labels[:5])}{' …' if len(report.labels) > 5 else ''}")
    if report.normalize:
        say(f"pixels   {', '.join(f'(pixel - {mean:g}) / {std:g}' for mean, std in report.normalize)}")
    say(
        f"file     {report.size_bytes:,} bytes, {report.gzip_bytes:,} compressed, {report.parameter_bytes:,} in weights"
    )
    say(f"compute  {report.macs:,} multiply-adds per image, in {len(report.operators)} operators")
    say(f"memory   {report.arena_bytes:,} bytes for activations; {report.microcontroller_bytes:,} on a microcontroller")
    if novelty := report.novelty:
        say(
            f"novelty  {novelty.model}, {novelty.size_bytes:,} bytes: unknown if the reconstruction error is above "
            f"{novelty.threshold:g}"
        )
    for fault in report.metadata_faults:
        say(f"metadata cannot be used: {fault}")
    for finding in report.findings:
        say(f"refused  {finding}")
    _show_edgetpu(report)
    say("")
    for name, reason in report.targets.items():
        say(f"{name:<16} {f'no: {reason}' if reason else 'yes'}")


def _show_edgetpu(report: InspectReport) -> None:
    diagnosis = report.edgetpu
    if diagnosis is None:
        return
    mapped = sum(operator.on == "edgetpu" for operator in report.operators)
    cpu_fraction = (
        f", {diagnosis.cpu_macs / diagnosis.macs:.1%} of the multiply-adds stay on the CPU" if diagnosis.macs else ""
    )
    say(f"edge tpu {mapped} of {len(report.operators)} operators{cpu_fraction}")
    for remark in diagnosis.remarks:
        say(f"         {remark}")
    refused = {finding.index for finding in report.findings}
    following = [
        operator.index for operator in report.operators if operator.on == "cpu" and operator.index not in refused
    ]
    if following and len(following) < len(report.operators):
        numbers = ", ".join(map(str, following))
        say(f"cpu      {len(following)} supported operators run on the CPU, after an unsupported one: {numbers}")
    if report.compiler is not None:
        differences = len(report.compiler.differences)
        verdict = f"placed {differences} operators differently" if differences else "placed all operators as predicted"
        say(f"compiler {verdict} ({report.compiler.compiler})")
    elif report.compiler_error:
        say(f"compiler {report.compiler_error}")


def _quantization(tensor: InspectedTensor) -> str:
    if not tensor.scales:
        return ""
    zero = tensor.zero_points[0] if tensor.zero_points else 0
    return f", scale {tensor.scales[0]:g}, zero point {zero}"


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"
