"""Implement the ``edgerec verify`` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.options import (
    DELEGATE_HELP,
    DELEGATE_OPTION_HELP,
    AllowedSignersOption,
    RevokedKeysOption,
    parse_delegate_options,
)
from edgerec.cli.output import JsonOption, progress, say, show_json, show_log, table

if TYPE_CHECKING:
    from edgerec.emulation import EmulationReport
    from edgerec.emulation.score_comparison import ScoreComparison


_EMULATED = "In an emulated system"


def verify(
    bundle: Path = typer.Argument(..., metavar="BUNDLE", help="Bundle folder or .zip file."),
    delegate: str | None = typer.Option(None, metavar="NAME", help=DELEGATE_HELP),
    delegate_option: list[str] = typer.Option([], metavar="KEY=VALUE", help=DELEGATE_OPTION_HELP),
    json: bool = JsonOption,
    allowed_signers: Path | None = AllowedSignersOption,
    revoked_keys: Path | None = RevokedKeysOption,
    on: str = typer.Option(
        "",
        metavar="TARGET",
        help="Verify the bundle in an emulation of this target: rpi or rpi-32bit. [default: verify on this machine]",
        rich_help_panel=_EMULATED,
    ),
    data: str = typer.Option(
        "",
        metavar="DATA",
        help="Images whose predictions are compared with the predictions on this machine. Requires --on.",
        rich_help_panel=_EMULATED,
    ),
    images: int = typer.Option(
        300,
        "--images",
        min=1,
        metavar="N",
        help="Maximum number of images from --data to compare.",
        rich_help_panel=_EMULATED,
    ),
    find_links: str = typer.Option(
        "",
        metavar="FOLDER|URL",
        help="Folder or URL with additional wheels, as for pip --find-links. Requires --on.",
        rich_help_panel=_EMULATED,
    ),
) -> None:
    """Verify a bundle's files and scores on this machine.

    The scores of the golden images are compared with those computed by the machine that exported the bundle.
    """
    from edgerec.errors import EdgerecError, SignatureError

    keys = {"allowed_signers": allowed_signers, "revoked_keys": revoked_keys}
    try:
        if on and (delegate is not None or delegate_option):
            raise typer.BadParameter(
                "--delegate cannot be combined with --on, because emulated systems have no delegates: omit --delegate"
            )
        if on:
            _verify_emulated(bundle, on, data, images, find_links, json, keys)
        elif data or find_links:
            raise typer.BadParameter("--data and --find-links require an emulated system: add --on rpi")
        else:
            _verify(bundle, delegate, parse_delegate_options(delegate_option), json, keys)
    except EdgerecError as error:
        if not json:
            raise
        problem = {"problem": error.problem} if isinstance(error, SignatureError) else {}
        show_json({"ok": False, "bundle": str(bundle), "reason": str(error)} | problem)
        raise typer.Exit(1) from None


def _verify(
    bundle: Path, delegate: str | None, options: dict[str, str], json: bool, keys: dict[str, Path | None]
) -> None:
    from edgerec.runtime.verification import verify as verify_bundle

    show_log()
    report = verify_bundle(bundle, delegate=delegate, delegate_options=options, **keys)
    if json:
        show_json(report.to_dict())
        return
    for warning in report.warnings:
        say(f"warning: {warning}", err=True)
    if report.signer:
        serial = f", serial number {report.signer.serial}" if report.signer.serial else ""
        say(f"signed by {report.signer}{serial}")
    elif report.signed:
        say("the signature was not checked: add --allowed-signers FILE")
    how = "bit for bit" if report.exact else f"within {report.max_difference:g} (allowed: {report.tolerance:g})"
    say(f"ok: {report.files} files unchanged, scores of {report.images} golden images equal {how}")
    if not report.exact:
        say(f"the predicted label is the same for {report.same_labels} of {report.images} golden images")
        say(
            f"for {report.decisive} of {report.images} golden images the label must be the same, because the two best "
            f"scores differ by more than {report.tolerance:g}"
        )
    say(f"exported with {report.made_on.runtime} {report.made_on.version} on {report.made_on.machine}")
    with_delegate = f", delegate {report.delegate}" if report.delegate else ""
    say(f"verified with {report.here.runtime} {report.here.version} on {report.here.machine}{with_delegate}")


def _verify_emulated(
    bundle: Path, on: str, data: str, images: int, find_links: str, json: bool, keys: dict[str, Path | None]
) -> None:
    from edgerec.emulation import verify_emulated
    from edgerec.errors import BundleError

    with progress() as listener:
        report = verify_emulated(
            bundle,
            on,
            data=data or None,
            images=images,
            find_links=find_links,
            listener=listener,
            allowed_signers=keys["allowed_signers"],
            revoked_keys=keys["revoked_keys"],
        )
    if json:
        show_json(report.to_dict())
        raise typer.Exit(1 if report.problem else 0)
    _show(report)
    if report.problem:
        raise BundleError(f"{bundle} does not produce the expected scores on {on}: {report.problem}")
    say(f"ok: verified in an emulated system of {on}; exported with {report.made_on.runtime} {report.made_on.version}")
    if other_runtimes := {result.runtime for result in report.results} - {report.made_on.runtime}:
        names = " and ".join(other_runtimes)
        say(f"note: {on} uses {names}, which rounds differently, so nearly equal scores may be ranked differently")


def _show(report: EmulationReport) -> None:
    has_images = any(result.images for result in report.results)
    header = ("system", "CPU", "runtime", "golden", "top-1", "max diff (steps)")
    rows = [
        (
            f"{result.release}, Python {result.python}, {result.machine}",
            result.cpu,
            f"{result.runtime} {result.version}".strip() or "–",
            *_cells(result.golden),
            *(_cells(result.images) if has_images else ()),
            f"{result.seconds:.0f}",
        )
        for result in report.results
    ]
    table(
        (*header, *(("images", "top-1", "max diff (steps)") if has_images else ()), "seconds"),
        rows,
        optional=("seconds",),
    )
    for result in report.results:
        for reason in result.import_errors:
            say(f"{result.release}, {result.cpu}: {reason}")


def _cells(comparison: ScoreComparison | None) -> tuple[str, str, str]:
    if comparison is None:
        return "–", "–", "–"
    top1 = "same" if comparison.same_top1 == comparison.images else f"{comparison.same_top1} same"
    return str(comparison.images), top1, f"{comparison.max_difference:.3g}"
