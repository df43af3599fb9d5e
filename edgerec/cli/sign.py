"""Implement the ``edgerec sign`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.options import SERIAL_HELP
from edgerec.cli.output import JsonOption, say, show_json, show_log


def sign(
    bundle: Path = typer.Argument(..., metavar="BUNDLE", help="Bundle folder or .zip file."),
    key: Path = typer.Option(
        ...,
        "--key",
        "-k",
        metavar="KEY",
        help="SSH key, such as ~/.ssh/id_ed25519. If the file contains only a public key, ssh-agent must hold the "
        "private key.",
    ),
    serial: int | None = typer.Option(None, min=0, metavar="N", help=SERIAL_HELP),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing signature."),
    json: bool = JsonOption,
) -> None:
    """Sign a bundle with an SSH key.

    The signature is written to manifest.json.sig in the bundle. It covers the digest of every file.
    """
    from edgerec.contract.signing import sign_bundle

    show_log()
    report = sign_bundle(bundle, key, serial=serial, overwrite=overwrite)
    if json:
        show_json(report.to_dict())
        return
    for line in str(report).splitlines():
        say(line)
