"""``edgerec export``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    novelty: Path | None = typer.Option(
        None, help="An autoencoder's run: pictures that it makes again badly are answered unknown."
    ),
    novelty_variant: str | None = typer.Option(None, help="Of it, as int8-qat. [default: the best int8 one]"),
    known: float | None = typer.Option(
        None, min=0, max=1, help="Part of its validation pictures that stay known. [default: 0.99]"
    ),
    max_drop: float | None = typer.Option(
        None, help="Points of top-1 that the variant may have lost. [default: as quantize]"
    ),
    data: list[str] | None = typer.Option(None, help="New location of the run's images, if they were moved."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the bundle."),
    json: bool = JsonOption,
) -> None:
    """Write the bundle that a device runs."""
    if novelty is None and (novelty_variant or known is not None):
        raise typer.BadParameter("--novelty-variant and --known are for --novelty AUTOENCODER_RUN")
    with progress() as listener:
        from edgerec.export import Novelty, export_bundle

        chosen: dict[str, Any] = {"variant": novelty_variant} | ({} if known is None else {"known": known})
        report = export_bundle(
            run,
            target,
            variant=variant,
            out=out,
            threshold=threshold,
            precision=precision,
            novelty=Novelty(novelty, **chosen) if novelty else None,
            max_drop=max_drop,
            data=data or None,
            overwrite=overwrite,
            listener=listener,
        )
    if json:
        show_json(report.to_dict())
        return
    say(f"bundle   {report.bundle}  ({report.variant}, {report.size_bytes:,} bytes, top-1 {report.top1:.2%})")
    if found := report.novelty:
        say(
            f"novelty  {found['variant']}, {found['size_bytes']:,} bytes: unknown above an error of "
            f"{found['threshold']:.5f}; {found['known_held_out']:.2%} of {found['images']} held-out pictures are known"
        )
    say(f"verified {report.golden} golden images")
    if report.edgetpu is not None:
        state = "compiled" if report.edgetpu.compiler else "checked, not compiled"
        say(f"edge tpu {report.edgetpu.operators} operators, all predicted to run there; {state}")
        if report.edgetpu.differences:
            say(f"         the compiler left {len(report.edgetpu.differences)} of them on the processor")
    say(f"next     read {report.bundle}/README.md")
