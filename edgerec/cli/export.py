"""``edgerec export``"""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.output import JsonOption, progress, say, show_json


def export(
    run: Path = typer.Argument(..., help="A finished run."),
    target: str = typer.Option("desktop", "--target", "-t", help="Of those in edgerec targets, or a .toml file."),
    variant: str | None = typer.Option(None, help="As int8-qat. [default: the best int8 one by validation]"),
    out: Path | None = typer.Option(None, "--out", "-o", help="Folder, or a .zip. [default: RUN-TARGET]"),
    threshold: float = typer.Option(0.0, min=0, max=1, help="Below this score the bundle answers unknown."),
    precision: float | None = typer.Option(
        None, min=0, max=1, help="A threshold for each label: so many of its answers are right, on validation."
    ),
    max_drop: float | None = typer.Option(
        None, help="Points of top-1 that the variant may have lost. [default: as quantize]"
    ),
    data: str | None = typer.Option(None, help="Where the run's pictures are now, if they were moved."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the bundle."),
    json: bool = JsonOption,
) -> None:
    """Write the bundle that a device runs."""
    with progress() as listener:
        from edgerec.export import export_bundle

        report = export_bundle(
            run,
            target,
            variant=variant,
            out=out,
            threshold=threshold,
            precision=precision,
            max_drop=max_drop,
            data=data,
            overwrite=overwrite,
            listener=listener,
        )
    if json:
        show_json(report.to_dict())
        return
    say(f"bundle   {report.bundle}  ({report.variant}, {report.size_bytes:,} bytes, top-1 {report.top1:.2%})")
    say(f"verified {report.golden} golden pictures")
    if report.edgetpu is not None:
        state = "compiled" if report.edgetpu.compiler else "checked, not compiled"
        say(f"edge tpu {report.edgetpu.operators} operators, all predicted to run there; {state}")
        if report.edgetpu.differences:
            say(f"         the compiler left {len(report.edgetpu.differences)} of them on the processor")
    say(f"next     read {report.bundle}/README.md")
