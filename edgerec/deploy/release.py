"""Deploy a bundle to a device, roll back to the previous release, or remove all releases."""

from __future__ import annotations

import shlex
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from edgerec.contract.target import Target
from edgerec.deploy.agent_archive import agent_archive
from edgerec.deploy.device import Device, DeviceFacts, DeviceStatus
from edgerec.deploy.operation import DeployOptions, DeployResult, Listener, Progress, new_job
from edgerec.deploy.plan import NOTHING_TO_SEND, Package, Plan, check_space, describe_switch, describe_trial
from edgerec.deploy.probe import check_device, probe
from edgerec.deploy.replies import StatusReply
from edgerec.deploy.service_config import DEFAULT_CONFIG, read_config, read_text, uses_first_camera
from edgerec.deploy.session import MAX_STEP_NAME_CHARACTERS, Session, agent_python
from edgerec.deploy.ssh import Connection, ConnectionLostError, too_much_output
from edgerec.deploy.transfer import send_contents
from edgerec.deploy.unit import service_unit
from edgerec.errors import DeployError
from edgerec.utils.atomic import sha256
from edgerec.utils.text import shortened

# Time in seconds for which the host tries to reconnect to a device, which may be rebooting.
RECONNECT_S = 300.0
# Pause in seconds between two attempts to reconnect to a device.
RECONNECT_PAUSE_S = 2.0
# Maximum number of steps of a job, in addition to those that report the monitoring of a release.
MAX_STEP_LINES = 1000
# Maximum length, in characters, of a step's text.
MAX_STEP_CHARACTERS = 1000


def deploy_bundle(
    bundle: Path | str, device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool
) -> DeployResult:
    """Install and start a bundle on a device. If the new release is not healthy, restore the previous one.

    If the release is already running with the same options, the device is not changed.

    Args:
        bundle: the bundle's folder or .zip file.
        device: the device.
        options: options of the deployment.
        listener: function that is called with each step and its progress. If the function raises an exception before
            the step ``install``, the deployment is canceled. After this step has started, the device completes the
            deployment without the host.

    Raises:
        BundleError: the bundle is invalid.
        DeployError: the device cannot run the bundle, the connection failed, or the new release was not healthy and
            the previous one was restored.
    """
    package = Package.open(bundle)
    config = read_config(options.config, package.bundle.path)
    if options.allowed_signers is not None:
        read_text(options.allowed_signers)  # Report an unreadable file before connecting.
    progress = Progress(device.label, listener)
    with Connection(device) as connection:
        facts = _connect(connection, progress)
        python = check_device(facts, package.target, device)
        progress("check", "done", f"{facts.system}, {facts.machine}, Python {python}")
        session = Session(connection, facts)
        status = session.status()
        _check_unit(status, device)
        unit = service_unit(package.unit, device.prefix, agent_python(facts, device.label))
        if config is None and not status["config"]:
            config = DEFAULT_CONFIG
        if _is_running(status, package, unit, config, options):
            session.close()
            progress("plan", "skipped", f"release {package.release} is already running")
            return progress.result(connection, package.release, status["previous"], changed=False)
        _check_camera(facts, package.target, device, config, status)
        _check_signature(package, status, device, options)
        plan = Plan.make(package, facts, python, options, session, status["releases"], progress)
        check_space(plan, device)
        progress("plan", "done", plan.summary)
        job = plan.job(unit, config, options)
        if options.dry_run:
            session.close()
            plan.describe(progress, status, config is not None, options)
            return progress.result(connection, package.release, status["release"], changed=False)
        _update_agent(session)
        _send(session, plan, progress)
        result = _run_job(connection, session, job, progress)
        return progress.result(connection, result["release"], result["previous"], changed=result["changed"])


def rollback(device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool) -> DeployResult:
    """Switch a device to its previous release, and monitor the release like a new one.

    Raises:
        DeployError: there is no previous release, the connection failed, or the previous release is not healthy.
    """
    return _run_without_bundle("rollback", device, options, listener)


def remove(device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool) -> DeployResult:
    """Stop the camera service and delete all releases, but keep the configuration in ``/etc/edgerec``.

    Raises:
        DeployError: the connection failed, or a file cannot be deleted.
    """
    return _run_without_bundle("remove", device, options, listener)


def device_status(device: Device) -> DeviceStatus:
    """Query the installed releases of a device and the state of its camera.

    Raises:
        DeployError: the connection failed.
    """
    with Connection(device) as connection:
        facts = probe(connection)
        session = Session(connection, facts)
        status = session.status()
        session.close()
    return DeviceStatus.from_reply(device, status)


def _run_without_bundle(
    do: Literal["rollback", "remove"], device: Device, options: DeployOptions, listener: Listener
) -> DeployResult:
    progress = Progress(device.label, listener)
    with Connection(device) as connection:
        facts = _connect(connection, progress)
        if not facts.root:
            raise DeployError(
                f"cannot use {device.label}: root permissions are required; connect as root", step="check"
            )
        session = Session(connection, facts)
        status = session.status()
        if do == "rollback" and not status["previous"]:
            raise DeployError(
                f"{device.label} has no previous release to which it can be rolled back: deploy a bundle", step="plan"
            )
        if options.dry_run:
            session.close()
            return _describe(do, connection, progress, status, options)
        session.request("lock", host=socket.gethostname())
        _update_agent(session)
        job = {**new_job(options), "do": do}
        result = _run_job(connection, session, job, progress)
        if do == "remove":
            _remove_agent(connection, facts)
        return progress.result(connection, result["release"], result["previous"], changed=result["changed"])


def _describe(
    do: Literal["rollback", "remove"],
    connection: Connection,
    progress: Progress,
    status: StatusReply,
    options: DeployOptions,
) -> DeployResult:
    """Report the planned steps of a rollback or removal without performing them."""
    if do == "rollback":
        progress("switch", "planned", describe_switch(status["release"], status["previous"]))
        describe_trial(progress, options)
        return progress.result(connection, status["previous"], status["release"], changed=False)
    if status["unit"] or status["releases"] or status["agent"]:
        progress("switch", "planned", "stop and remove the service")
        progress("prune", "planned", "remove all releases")
    else:
        progress("plan", "skipped", "nothing is installed")
    return progress.result(connection, "", status["release"], changed=False)


def _remove_agent(connection: Connection, facts: DeviceFacts) -> None:
    """Delete the agent from the device, unless another deployment to the device has started."""
    # With an empty digest, the session sends the agent over stdin instead of using the file that will be deleted.
    session = Session(connection, replace(facts, agent_digest=""))
    # All releases are already deleted, so a lost connection only leaves the agent's own files on the device.
    with suppress(ConnectionLostError):
        session.request("remove-agent", host=socket.gethostname())
    session.close()


def _connect(connection: Connection, progress: Progress) -> DeviceFacts:
    progress("connect", "running", connection.device.address)
    facts = probe(connection)
    progress("connect", "done", connection.device.address)
    return facts


def _is_running(status: StatusReply, package: Package, unit: str, config: str | None, options: DeployOptions) -> bool:
    """Return whether the device is already running this release with the same configuration and options."""
    signers = options.allowed_signers
    return bool(
        status["release"] == package.release
        and not status["on_trial"]
        and status["service"] == "active"
        and status["unit"] == sha256(unit.encode())
        and (config is None or status["config"] == sha256(config.encode()))
        and (signers is None or status["signers"] == sha256(read_text(signers).encode()))
        and options.require_signature in (None, status["require_signature"])
    )


def _check_unit(status: StatusReply, device: Device) -> None:
    """Raise an error if the camera service was installed with another prefix or with install.sh."""
    if not status["foreign_unit"]:
        return
    if status["unit_prefix"]:
        prefix = shlex.quote(status["unit_prefix"])
        raise DeployError(
            f"cannot deploy to {device.label}: the camera service is already installed in {prefix}; use --prefix "
            f"{prefix}, or remove that installation first with --remove --prefix {prefix}",
            step="check",
        )
    raise DeployError(
        f"cannot deploy to {device.label}: a service was installed there with install.sh; remove it first with "
        "sudo sh install.sh --undo",
        step="check",
    )


def _check_camera(facts: DeviceFacts, target: Target, device: Device, config: str | None, status: StatusReply) -> None:
    """Raise an error if the configuration uses the first camera, but the device has no usable camera."""
    auto = status["auto_source"] if config is None else uses_first_camera(config)
    if auto and not facts.cameras:
        raise DeployError(
            f'cannot deploy to {device.label}: it has no camera, but its configuration has sources = ["auto"]; '
            "connect a camera, or choose another source with --config camera.toml",
            step="check",
        )
    if auto and facts.camera_module and "picamera2" in target.sources and not facts.picamera2:
        raise DeployError(
            f"cannot deploy to {device.label}: its camera module requires picamera2; run sudo apt-get install "
            "--no-install-recommends python3-picamera2 on the device",
            step="check",
        )


def _check_signature(package: Package, status: StatusReply, device: Device, options: DeployOptions) -> None:
    """Raise an error if a required signature or the file of allowed signers is missing."""
    if not (status["require_signature"] if options.require_signature is None else options.require_signature):
        return
    if package.bundle.signature is None:
        raise DeployError(
            f"cannot deploy to {device.label}: the bundle is not signed, but a signature is required; sign the "
            "bundle with edgerec sign",
            step="check",
        )
    if options.allowed_signers is None and not status["signers"]:
        raise DeployError(
            f"cannot deploy to {device.label}: a signature is required, but the device has no file of allowed signers; "
            "add --allowed-signers FILE",
            step="check",
        )


def _update_agent(session: Session) -> None:
    """Install the agent on the device, or replace it if it differs from the agent of this version of edgerec.

    The session must hold the device's lock, so that no other deployment deletes ``agent.pyz``.
    """
    archive = agent_archive()
    if session.status()["agent"] != sha256(archive):
        session.send("update-agent", digest=sha256(archive), size=len(archive))
        session.write(archive)
        session.reply()


def _send(session: Session, plan: Plan, progress: Progress) -> None:
    total = plan.missing_bytes
    if not plan.missing:
        progress("send", "skipped", NOTHING_TO_SEND)
        return
    text = plan.files_to_send
    progress("send", "running", text, 0, total)
    send_contents(session, plan.contents, plan.missing, lambda sent: progress("send", "running", text, sent, total))
    progress("send", "done", text)


def _run_job(connection: Connection, session: Session, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Start a job on the device, and report its steps until the job ends. Reconnect if the connection is lost."""
    lines, lost_s = 0, 0.0
    # While the agent monitors a release, it reports two steps per second.
    max_lines = MAX_STEP_LINES + 10 * int(job["healthy_within_s"] + job["settle_s"])
    session.send(**job)
    while True:
        try:
            for line in session.replies():
                lines, lost_s = lines + 1, 0.0
                if "result" in line:
                    return dict(line["result"])
                if lines > max_lines:
                    raise too_much_output(connection.device)
                text = shortened(line["text"], MAX_STEP_CHARACTERS)
                name, state = (line[key][:MAX_STEP_NAME_CHARACTERS] for key in ("step", "state"))
                progress(name, state, text, line["done"], line["total"])
        except ConnectionLostError:
            lost_s = lost_s or time.monotonic()
            session = _reconnect(connection, lost_s + RECONNECT_S, f"follow --job {job['id']} --skip {lines}")


def _reconnect(connection: Connection, deadline_s: float, arguments: str) -> Session:
    """Reconnect to the device, and return a new session.

    Args:
        connection: the lost connection.
        deadline_s: time after which no further attempt is made, in seconds of ``time.monotonic()``.
        arguments: the agent's command-line arguments for the new session.

    Raises:
        DeployError: the device cannot be reached.
    """
    reason = ""
    while time.monotonic() < deadline_s:
        time.sleep(RECONNECT_PAUSE_S)
        connection.reopen()
        try:
            return Session(connection, probe(connection), arguments)
        except DeployError as error:
            reason = f" ({error})"
    raise DeployError(
        f"the connection to {connection.device.label} was lost and cannot be restored{reason}: the device finishes the "
        "deployment by itself; check the result with edgerec devices",
        step="monitor",
    )
