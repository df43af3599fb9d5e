"""Implement the ``edgerec export`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from edgerec.cli.options import MOVED_DATA_HELP, SERIAL_HELP, SIGNATURE_PANEL
from edgerec.cli.output import JsonOption, progress, say, show_edgetpu, show_json

_DECISION, _NOVELTY = "Unknown images", "Unknown images detected by an autoencoder"


def export(
    run: Path = typer.Argument(..., metavar="RUN", help="A finished run."),
    target: str = typer.Option(
        "desktop", "--target", "-t", metavar="NAME", help="Target: a name listed by 'edgerec targets', or a .toml file."
    ),
    variant: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Variant to export, such as int8-qat. [default: the int8 variant with the best validation accuracy]",
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="FOLDER", help="Output folder or .zip file for the bundle. [default: RUN-TARGET]"
    ),
    max_drop: float | None = typer.Option(
        None,
        metavar="POINTS",
        help="Maximum acceptable loss of top-1 accuracy due to compression, in percentage points. [default: the value "
        "used for quantization]",
    ),
    data: list[str] | None = typer.Option(None, metavar="DATA", help=MOVED_DATA_HELP),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing bundle."),
    json: bool = JsonOption,
    threshold: float = typer.Option(
        0.0,
        min=0,
        max=1,
        metavar="SCORE",
        help="Predict 'unknown' for images whose top score is below this value.",
        rich_help_panel=_DECISION,
    ),
    precision: float | None = typer.Option(
        None,
        min=0,
        max=1,
        metavar="FRACTION",
        help="Fit a threshold for each label so that its precision on the validation images is at least this value. "
        "Images with a lower score get the label 'unknown'. [default: do not fit thresholds]",
        rich_help_panel=_DECISION,
    ),
    novelty: Path | None = typer.Option(
        None,
        metavar="RUN",
        help="Run of an autoencoder that detects unknown images: images with a high reconstruction error get the label "
        "'unknown'.",
        rich_help_panel=_NOVELTY,
    ),
    novelty_variant: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Variant of the autoencoder to use. [default: the int8 variant with the best validation result]",
        rich_help_panel=_NOVELTY,
    ),
    known: float | None = typer.Option(
        None,
        min=0,
        max=1,
        metavar="FRACTION",
        help="Fraction of the autoencoder's validation images to accept as known. [default: 0.99]",
        rich_help_panel=_NOVELTY,
    ),
    sign: Path | None = typer.Option(
        None,
        metavar="KEY",
        help="SSH key that signs the bundle, such as ~/.ssh/id_ed25519. [default: do not sign the bundle]",
        rich_help_panel=SIGNATURE_PANEL,
    ),
    serial: int | None = typer.Option(None, min=0, metavar="N", help=SERIAL_HELP, rich_help_panel=SIGNATURE_PANEL),
) -> None:
    """Export a run as a bundle for a target and verify it."""
    if novelty is None and (novelty_variant or known is not None):
        raise typer.BadParameter("--novelty-variant and --known require an autoencoder: add --novelty AUTOENCODER_RUN")
    if serial is not None and sign is None:
        raise typer.BadParameter("--serial has no effect without --sign KEY")
    with progress() as listener:
        from edgerec.export import Novelty, export_bundle

        novelty_options: dict[str, Any] = {"variant": novelty_variant} | ({} if known is None else {"known": known})
        report = export_bundle(
            run,
            target,
            variant=variant,
            out=out,
            threshold=threshold,
            precision=precision,
            novelty=Novelty(novelty, **novelty_options) if novelty else None,
            max_drop=max_drop,
            data=data or None,
            sign=sign,
            serial=serial,
            overwrite=overwrite,
            listener=listener,
        )
    if json:
        show_json(report.to_dict())
        return
    say(f"bundle   {report.bundle}  ({report.variant}, {report.size_bytes:,} bytes, top-1 {report.top1:.2%})")
    if autoencoder := report.novelty:
        say(
            f"novelty  {autoencoder.variant}, {autoencoder.size_bytes:,} bytes: the label is 'unknown' if the "
            f"reconstruction error is above {autoencoder.threshold:.5f}; {autoencoder.known_held_out:.2%} of "
            f"{autoencoder.images} test images are accepted as known"
        )
    say(f"verified {report.golden} golden images")
    if sign:
        from edgerec.contract.signing import signing_report

        for line in str(signing_report(report.bundle)).splitlines():
            say(line)
    if report.edgetpu is not None:
        show_edgetpu(report.edgetpu)
    say(f"next     read {report.bundle}/README.md")
