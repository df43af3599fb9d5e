"""``edgerec verify``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, chatter, progress, say, show_json, table

if TYPE_CHECKING:
    from edgerec.emulation import ProofReport
    from edgerec.emulation.score_comparison import Comparison


def verify(
    bundle: Path = typer.Argument(..., help="A bundle's folder or .zip."),
    on: str = typer.Option("", help="Verify the bundle in an emulated system of this target: rpi or rpi-32bit."),
    data: str = typer.Option(
        "", help="With --on: images whose predictions are compared between the emulated system and this machine."
    ),
    pictures: int = typer.Option(300, min=1, help="With --data: maximum number of images to compare."),
    find_links: str = typer.Option("", help="With --on: folder or URL with more wheels, as for pip --find-links."),
    delegate: str | None = typer.Option(
        None,
        help="Delegate: a shared library such as libedgetpu.so.1, gpu, or none for the CPU. [default: the bundle's]",
    ),
    delegate_option: list[str] = typer.Option([], help="KEY=VALUE for the delegate, e.g. device=usb:1."),
    json: bool = JsonOption,
) -> None:
    """Check that a bundle is complete, and that its scores are the same here as on the machine that exported it."""
    from edgerec.cli.camera import key_values
    from edgerec.errors import EdgerecError

    try:
        if on and (delegate is not None or delegate_option):
            raise typer.BadParameter("--delegate applies to this machine and cannot be combined with --on: omit it")
        if on:
            _prove(bundle, on, data, pictures, find_links, json)
        elif data or find_links:
            raise typer.BadParameter("--data and --find-links are for an emulated system: add --on rpi")
        else:
            library = "" if delegate == "none" else delegate
            options = {key: str(value) for key, value in key_values(delegate_option, "device=usb:1").items()}
            _verify(bundle, library, options, json)
    except EdgerecError as error:
        if not json:
            raise
        show_json({"ok": False, "bundle": str(bundle), "reason": str(error)})
        raise typer.Exit(1) from None


def _verify(bundle: Path, delegate: str | None, options: dict[str, str], json: bool) -> None:
    from edgerec.runtime.verification import verify as check

    chatter()
    report = check(bundle, delegate=delegate, delegate_options=options)
    if json:
        show_json(report.to_dict())
        return
    for warning in report.warnings:
        say(f"warning: {warning}", err=True)
    how = "bit for bit" if report.exact else f"within {report.max_difference:g} (allowed {report.tolerance:g})"
    say(f"ok: {report.files} files unchanged, scores of {report.images} golden images equal {how}")
    if not report.exact:
        say(f"the predicted label is the same for {report.same_labels} of {report.images} golden images")
        say(
            f"{report.decisive} of {report.images} golden images are decisive: their labels must be the same, "
            f"because their two best scores are further apart than {report.tolerance:g}"
        )
    say(f"made with {report.made_on.runtime} {report.made_on.version} on {report.made_on.machine}")
    with_delegate = f", delegate {report.delegate}" if report.delegate else ""
    say(f"here with {report.here.runtime} {report.here.version} on {report.here.machine}{with_delegate}")


def _prove(bundle: Path, on: str, data: str, pictures: int, find_links: str, json: bool) -> None:
    from edgerec.emulation import prove
    from edgerec.errors import BundleError

    with progress() as listener:
        report = prove(bundle, on, data=data or None, pictures=pictures, find_links=find_links, listener=listener)
    if json:
        show_json(report.to_dict())
        raise typer.Exit(1 if report.problem else 0)
    _show(report)
    if report.problem:
        raise BundleError(f"{bundle} does not answer on {on} as it should: {report.problem}")
    say(f"ok: proven on {on}'s userland, emulated; made with {report.made_on.runtime} {report.made_on.version}")
    if others := {proof.runtime for proof in report.proofs} - {report.made_on.runtime}:
        say(f"there {' and '.join(others)} runs it, which rounds otherwise: close scores may change places")


def _show(report: ProofReport) -> None:
    others = any(proof.pictures for proof in report.proofs)
    header = ("userland", "processor", "runtime", "golden", "top-1", "units off")
    rows = [
        (
            f"{proof.release}, Python {proof.python}, {proof.machine}",
            proof.processor,
            f"{proof.runtime} {proof.version}".strip() or "–",
            *_cells(proof.golden),
            *(_cells(proof.pictures) if others else ()),
            f"{proof.seconds:.0f}",
        )
        for proof in report.proofs
    ]
    table((*header, *(("pictures", "top-1", "units off") if others else ()), "seconds"), rows, optional=("seconds",))
    for proof in report.proofs:
        for reason in proof.import_errors:
            say(f"{proof.release}, {proof.processor}: {reason}")


def _cells(comparison: Comparison | None) -> tuple[str, str, str]:
    if comparison is None:
        return "–", "–", "–"
    top1 = "same" if comparison.same_top1 == comparison.pictures else f"{comparison.same_top1} same"
    return str(comparison.pictures), top1, f"{comparison.max_difference:.3g}"
