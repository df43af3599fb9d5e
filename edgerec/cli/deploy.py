"""Implement the ``edgerec deploy`` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, parse_duration_s, progress, say, show_json

if TYPE_CHECKING:
    from edgerec.deploy import DeployOptions, DeployResult, Device, Step

_OPERATIONS, _CONNECTION, _SIGNATURES = "Other operations", "Connection", "Signatures"


def deploy(
    arguments: list[str] = typer.Argument(
        ...,
        metavar="[BUNDLE] DEVICE",
        help="Bundle folder or .zip file, and the device: user@host, or a host of ~/.ssh/config.",
    ),
    config: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Configuration of the camera. [default: keep the device's; at first: the first camera]",
    ),
    healthy_within: str = typer.Option(
        "60s",
        metavar="DURATION",
        help="Restore the previous release unless the new one classifies frames within this time.",
    ),
    keep: int = typer.Option(
        3, min=1, metavar="N", help="Number of releases to keep. The current and the previous one are always kept."
    ),
    find_links: str = typer.Option(
        "", metavar="FOLDER|URL", help="Additional wheels for the device, as for pip --find-links."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the steps without changing the device."),
    json: bool = JsonOption,
    rollback: bool = typer.Option(
        False, "--rollback", help="Switch to the previous release.", rich_help_panel=_OPERATIONS
    ),
    remove: bool = typer.Option(
        False,
        "--remove",
        help="Stop the service and remove all releases. /etc/edgerec is kept.",
        rich_help_panel=_OPERATIONS,
    ),
    port: int | None = typer.Option(
        None,
        min=1,
        max=65535,
        metavar="PORT",
        help="Port of the SSH server. [default: from the SSH configuration]",
        rich_help_panel=_CONNECTION,
    ),
    ssh_config: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="SSH configuration file. [default: ~/.ssh/config]",
        rich_help_panel=_CONNECTION,
    ),
    prefix: str = typer.Option(
        "/opt/edgerec", metavar="FOLDER", help="Installation folder on the device.", rich_help_panel=_CONNECTION
    ),
    allowed_signers: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Install this file of trusted public keys on the device.",
        rich_help_panel=_SIGNATURES,
    ),
    require_signature: bool | None = typer.Option(
        None,
        "--require-signature/--no-require-signature",
        help="From now on, accept only signed bundles. [default: keep the device's setting]",
        rich_help_panel=_SIGNATURES,
    ),
    allow_downgrade: bool = typer.Option(
        False,
        "--allow-downgrade",
        help="Accept a signed bundle that is older than the newest one so far.",
        rich_help_panel=_SIGNATURES,
    ),
) -> None:
    """Install, update or roll back a bundle on a device over SSH.

    If a new release does not classify frames, the previous release is restored.
    """
    if rollback and remove:
        raise typer.BadParameter("--rollback cannot be combined with --remove")
    count = 1 if rollback or remove else 2
    if len(arguments) != count:
        expected = "DEVICE" if count == 1 else "BUNDLE DEVICE"
        raise typer.BadParameter(f"expected {expected}, got {len(arguments)} arguments")
    from edgerec.deploy import DeployOptions, Device
    from edgerec.errors import EdgerecError

    device = Device(arguments[-1], port=port, ssh_config=ssh_config, prefix=prefix.rstrip("/"), interactive=True)
    options = DeployOptions(
        config=config,
        healthy_within_s=parse_duration_s(healthy_within),
        keep=keep,
        dry_run=dry_run,
        require_signature=require_signature,
        allowed_signers=allowed_signers,
        allow_downgrade=allow_downgrade,
        find_links=find_links,
    )
    operation = "rollback" if rollback else "remove" if remove else "deploy"
    try:
        result = _run(operation, arguments[0], device, options, json)
    except EdgerecError as error:
        log = getattr(error, "log", ())
        if json:
            restored = getattr(error, "restored", False)
            step = getattr(error, "step", "")
            show_json({"device": device.label, "reason": str(error), "step": step, "restored": restored, "log": log})
            raise typer.Exit(1) from None
        for line in log:
            say(f"{device.label}: {line}", err=True)
        raise
    if json:
        show_json(result.to_dict())
    else:
        _show(operation, result, dry_run)


def _run(operation: str, bundle: str, device: Device, options: DeployOptions, json: bool) -> DeployResult:
    from edgerec.deploy import deploy_bundle, remove, rollback
    from edgerec.utils.progress import Progress

    with progress() as show_progress:

        def show_step(step: Step) -> None:
            if step.state == "running":
                done, total = (step.done, step.total) if step.total else (0, 1)
                show_progress(Progress(step.name, min(done, total), total, step.text))
            elif not json:
                show_progress(Progress(step.name, 1, 1))
                say(f"{step.name:<8} {step.text}")

        if operation == "deploy":
            return deploy_bundle(Path(bundle), device, options, show_step)
        return (rollback if operation == "rollback" else remove)(device, options, show_step)


def _show(operation: str, result: DeployResult, dry_run: bool) -> None:
    if dry_run:
        say("nothing was changed, because of --dry-run")
    elif operation == "remove":
        say(f"removed  all releases from {result.device}")
    else:
        previous = f", previously {result.previous}" if result.previous and result.changed else ""
        sent = f"{result.sent_bytes:,} bytes sent in {result.seconds:.1f} s"
        say(f"done     {result.device} runs release {result.release}{previous} ({sent})")
