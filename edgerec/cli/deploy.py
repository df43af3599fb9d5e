"""Implement the ``edgerec deploy`` command."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.output import JsonOption, parse_duration_s, progress, say, show_json

if TYPE_CHECKING:
    from edgerec.deploy import DeployOptions, DeployResult, Device, DeviceOutcome, FleetDevice, Step

_OPERATIONS, _FLEET = "Other operations", "Several devices"
_CONNECTION, _SIGNATURES = "Connection", "Signatures"


def deploy(
    arguments: list[str] | None = typer.Argument(
        None,
        metavar="[BUNDLE] [DEVICE]",
        show_default=False,
        help="Bundle folder or .zip file, and the devices: user@host, a host of ~/.ssh/config, or a name in "
        "devices.toml.",
    ),
    config: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Configuration file of the camera. [default: keep the file on the device; the first deployment uses the "
        "first camera]",
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
    all_devices: bool = typer.Option(
        False, "--all", help="Deploy to all devices in devices.toml.", rich_help_panel=_FLEET
    ),
    tag: list[str] = typer.Option(
        [], metavar="TAG", help="Deploy to the devices with this tag. May be repeated.", rich_help_panel=_FLEET
    ),
    parallel: int = typer.Option(
        4, min=1, max=64, metavar="N", help="Maximum number of simultaneous deployments.", rich_help_panel=_FLEET
    ),
    canary: int = typer.Option(
        0,
        min=0,
        metavar="N",
        help="Number of devices to update first. Devices with the tag 'canary' are chosen first. If one of them fails, "
        "no other device is updated.",
        rich_help_panel=_FLEET,
    ),
    devices: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="TOML file that lists the devices. [default: devices.toml]",
        rich_help_panel=_FLEET,
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
        help="Make the device refuse unsigned bundles, now and in later deployments. [default: keep the device's "
        "setting]",
        rich_help_panel=_SIGNATURES,
    ),
    allow_downgrade: bool = typer.Option(
        False,
        "--allow-downgrade",
        help="Accept a signed bundle that is older than the newest bundle that the device has accepted.",
        rich_help_panel=_SIGNATURES,
    ),
) -> None:
    """Install, update or roll back a bundle on devices over SSH.

    If a new release does not classify frames, the previous release is restored.
    """
    if rollback and remove:
        raise typer.BadParameter("--rollback cannot be combined with --remove")
    if all_devices and tag:
        raise typer.BadParameter("--all cannot be combined with --tag")
    operation = "rollback" if rollback else "remove" if remove else "deploy"
    fleet = all_devices or bool(tag)
    bundle, names = _split(arguments or [], operation, fleet)
    from edgerec.deploy import DeployOptions, Device
    from edgerec.errors import DeployError, EdgerecError

    template = Device("", port=port, ssh_config=ssh_config, prefix=prefix.rstrip("/"))
    selected, hints = _selected(names, tag, all_devices, devices, template)
    options = DeployOptions(
        config=config,
        healthy_within_s=parse_duration_s(healthy_within, "--healthy-within"),
        keep=keep,
        dry_run=dry_run,
        require_signature=require_signature,
        allowed_signers=allowed_signers,
        allow_downgrade=allow_downgrade,
        find_links=find_links,
    )
    if fleet or len(selected) > 1:
        if not _run_on_fleet(operation, bundle, selected, options, parallel, canary, json, hints):
            raise typer.Exit(1)
        return
    device = replace(selected[0].device, interactive=True)
    if operation == "deploy":
        options = replace(options, config=config or selected[0].config)
    connecting = set[str]()
    try:
        result = _run(operation, bundle, device, options, json, connecting)
    except EdgerecError as error:
        if device.label in connecting and device.label in hints:
            error = DeployError(f"{error}{hints[device.label]}")
        log = getattr(error, "log", ())
        if json:
            restored = getattr(error, "restored", False)
            step = getattr(error, "step", "")
            show_json({"device": device.label, "reason": str(error), "step": step, "restored": restored, "log": log})
            raise typer.Exit(1) from None
        for line in log:
            say(f"{device.label}: {line}", err=True)
        raise error from None
    if json:
        show_json(result.to_dict())
    else:
        _show(operation, result, dry_run)


def _split(arguments: list[str], operation: str, fleet: bool) -> tuple[str, list[str]]:
    """Split the arguments into the bundle, or an empty string if there is none, and the list of devices."""
    if operation != "deploy":
        bundle, names, expected = "", arguments, "DEVICE"
    else:
        bundle, names, expected = "".join(arguments[:1]), arguments[1:], "BUNDLE DEVICE"
    if not names and not fleet:
        missing = f"the device after {bundle!r} is missing" if bundle else f"{expected} is missing"
        raise typer.BadParameter(
            f"{missing}: specify an address such as pi@door or a name in devices.toml, or select devices with --all or "
            "--tag"
        )
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise typer.BadParameter(f"the device {repeated!r} is specified twice: specify each device once")
    return bundle, names


def _selected(
    names: list[str], tags: list[str], all_devices: bool, file: Path | None, template: Device
) -> tuple[tuple[FleetDevice, ...], dict[str, str]]:
    """Resolve names and tags to devices in devices.toml. A name that is not in the file is used as an address.

    Args:
        names: names of devices in devices.toml, or addresses of other devices.
        tags: tags of devices in devices.toml.
        all_devices: whether to select all devices in devices.toml.
        file: path of devices.toml, or None to use devices.toml in the current folder if the file exists.
        template: device whose connection options are used for addresses.

    Returns:
        The devices, and hints for addresses that may be misspelled names of devices in devices.toml, keyed by address.
    """
    from edgerec.deploy.devices_file import DEVICES_FILE, FleetDevice, read_devices, select_devices

    path = file or Path(DEVICES_FILE)
    has_names = any("@" not in name for name in names)
    listed = read_devices(path) if all_devices or tags or file or (has_names and path.is_file()) else ()
    known = {device.name for device in listed}
    addresses = [name for name in names if name not in known and ("@" in name or file is None)]
    for name in addresses:
        if "@" not in name and ("/" in name or name.endswith(".zip") or os.path.isfile(f"{name}/manifest.json")):
            raise typer.BadParameter(f"{name!r} is a bundle: specify a name in {path} or an address such as pi@door")
    chosen = [name for name in names if name not in addresses]
    of_file = select_devices(listed, () if all_devices else chosen, tags) if all_devices or tags or chosen else ()
    hints = {}
    for address in addresses:
        if "@" not in address and (near := difflib.get_close_matches(address, known, n=1)):
            hints[address] = f"; did you mean {near[0]!r} in {path}?"
    return (*of_file, *(FleetDevice(replace(template, address=address)) for address in addresses)), hints


def _run_on_fleet(
    operation: str,
    bundle: str,
    devices: Sequence[FleetDevice],
    options: DeployOptions,
    parallel: int,
    canary: int,
    json: bool,
    hints: Mapping[str, str],
) -> bool:
    """Perform an operation on several devices, print the outcomes, and return whether all of them succeeded.

    ``hints`` are added to the errors of devices that cannot be reached.
    """
    from edgerec.cli.fleet_output import fleet_progress, show_outcomes
    from edgerec.deploy import deploy_to_fleet, remove, rollback, run_on_fleet

    outcomes: dict[str, DeviceOutcome] = {}
    connecting = set[str]()
    with fleet_progress([device.name for device in devices], quiet=json) as (show_step, show_outcome):

        def listen(step: Step) -> None:
            _note_connecting(step, connecting)
            show_step(step)

        def finished(outcome: DeviceOutcome) -> None:
            if outcome.error and outcome.device in connecting:
                outcome = replace(outcome, error=outcome.error + hints.get(outcome.device, ""))
            outcomes[outcome.device] = outcome
            show_outcome(outcome)

        rollout: dict[str, Any] = {
            "parallel": parallel,
            "canary": canary,
            "listener": listen,
            "finished": finished,
        }
        with suppress(KeyboardInterrupt):  # After Ctrl-C, the printed outcomes show the canceled deployments.
            if operation == "deploy":
                deploy_to_fleet(bundle or None, devices, options, **rollout)
            else:
                perform = rollback if operation == "rollback" else remove
                run_on_fleet(
                    lambda entry, options, listener: perform(entry.device, options, listener),
                    devices,
                    options,
                    **rollout,
                )
    ordered = [outcomes[device.name] for device in devices]
    if json:
        show_json([outcome.to_dict() for outcome in ordered])
    else:
        show_outcomes(ordered)
    return all(outcome.succeeded for outcome in ordered)


def _note_connecting(step: Step, connecting: set[str]) -> None:
    """Update the set of devices whose connection has not been established yet."""
    if step.name == "connect" and step.state == "running":
        connecting.add(step.device)
    else:
        connecting.discard(step.device)


def _run(
    operation: str, bundle: str, device: Device, options: DeployOptions, json: bool, connecting: set[str]
) -> DeployResult:
    from edgerec.deploy import deploy_bundle, remove, rollback
    from edgerec.utils.progress import Progress

    with progress() as show_progress:

        def show_step(step: Step) -> None:
            _note_connecting(step, connecting)
            if step.state == "running":
                done, total = (step.done, step.total) if step.total else (0, 1)
                # During the step ``connect``, ssh may ask for a password or passphrase.
                asks = step.name == "connect"
                show_progress(Progress(step.name, min(done, total), total, step.text, may_ask_user=asks))
            elif not json:
                show_progress(Progress(step.name, 1, 1))
                say(f"{step.name:<8} {step.text}")

        if operation == "deploy":
            return deploy_bundle(Path(bundle), device, options, show_step)
        return (rollback if operation == "rollback" else remove)(device, options, show_step)


def _show(operation: str, result: DeployResult, dry_run: bool) -> None:
    if dry_run:
        planned = any(step.state == "planned" for step in result.steps)
        say("no changes were made (--dry-run)" if planned else "nothing would be changed")
    elif operation == "remove":
        say(f"removed  all releases from {result.device}")
    else:
        previous = f", previously {result.previous}" if result.previous and result.changed else ""
        sent = f"{result.sent_bytes:,} bytes sent in {result.seconds:.1f} s"
        say(f"done     {result.device} runs release {result.release}{previous} ({sent})")
