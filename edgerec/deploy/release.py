"""Deploy a bundle to one device, roll it back, and remove it."""

from __future__ import annotations

import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from edgerec.camera.config import CameraConfig
from edgerec.camera.config_reader import build, read_values
from edgerec.contract.bundle import MANIFEST, Bundle
from edgerec.contract.signature import SIGNATURE
from edgerec.contract.target import Target, target_names
from edgerec.deploy.device import Device, DeviceFacts, DeviceStatus
from edgerec.deploy.probe import check_device, probe
from edgerec.deploy.session import Session, agent_python, agent_source
from edgerec.deploy.ssh import Connection, ConnectionLostError
from edgerec.deploy.transfer import Contents, send_contents
from edgerec.deploy.unit import service_unit
from edgerec.deploy.wheels import Wheels, find_wheels, venv_digest
from edgerec.errors import BundleError, ConfigError, DeployError
from edgerec.export.install_and_service_files import install_files
from edgerec.utils.atomic import read_at_most, sha256

StepName = Literal["connect", "check", "plan", "send", "install", "verify", "switch", "monitor", "restore", "prune"]
StepState = Literal["planned", "running", "done", "skipped"]
UNIT = "edgerec.service"
MAX_CONFIG_BYTES = 1 << 20
# Python's byte code adds to the size of the unpacked wheels, and a device needs some space for logs.
BYTE_CODE_FACTOR, RESERVED_BYTES = 1.4, 64 << 20
# Time in seconds for which a new release must stay healthy before it is accepted.
SETTLE_S = 10.0
# If the connection is lost, the host tries to reconnect for this many seconds. A reboot takes about a minute.
RECONNECT_S, RECONNECT_PAUSE_S = 300.0, 2.0
DEFAULT_CONFIG = """\
# Configuration of the camera service. After a change, run: systemctl restart edgerec
# Passwords and tokens belong in /etc/edgerec/secrets.env.

# auto uses the camera module of a Raspberry Pi if there is one, otherwise the first USB camera. For an address with a
# password, write "env:CAMERA" here, and add the line CAMERA=rtsp://USER:PASSWORD@HOST/PATH to secrets.env.
sources = ["auto"]
output = "none"

# The web page shows the predictions. To serve it to the network, use the address "0.0.0.0:8000".
[web]
address = "127.0.0.1:8000"
"""
_AUTO_SOURCE = re.compile(r'^\s*sources\s*=\s*\[?\s*"auto"', re.MULTILINE)


@dataclass(frozen=True)
class DeployOptions:
    """Options of a deployment.

    Attributes:
        config: configuration file of the camera, which replaces ``/etc/edgerec/camera.toml`` on the device. If None,
            the device keeps its configuration.
        healthy_within_s: time in seconds in which the new release must classify frames before it is rolled back.
        settle_s: time in seconds for which a healthy service is observed.
        keep: number of releases to keep on the device, including the new one.
        dry_run: only return the steps, without changing the device.
        require_signature: from now on, the device accepts only signed bundles. None keeps the device's setting.
        allowed_signers: file with the public keys whose signatures the device accepts. It replaces
            ``/etc/edgerec/allowed_signers`` on the device. If None, the device keeps its file.
        allow_downgrade: accept a signed bundle that is older than one that the device has already accepted.
        find_links: folder or URL with additional wheels, as for pip's ``--find-links``, or an empty string.
    """

    config: Path | None = None
    healthy_within_s: float = 60.0
    settle_s: float = SETTLE_S
    keep: int = 3
    dry_run: bool = False
    require_signature: bool | None = None
    allowed_signers: Path | None = None
    allow_downgrade: bool = False
    find_links: str = ""


@dataclass(frozen=True)
class Step:
    """Progress of an operation on a device.

    Attributes:
        device: display name of the device.
        name: name of the step.
        state: ``planned`` in a dry run, ``running``, ``done`` or ``skipped``.
        text: description of the step, e.g. what is sent.
        done, total: progress of a running step, in bytes for the step ``send`` and in seconds for ``monitor``.
            ``total`` is 0 if the step has no measurable progress.
    """

    device: str
    name: StepName
    state: StepState
    text: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class DeployResult:
    """Result of a successful operation on a device.

    Attributes:
        device: display name of the device.
        release: digest of the release that now runs, or an empty string after ``remove``.
        previous: digest of the release that ran before, or an empty string.
        changed: whether the device was changed. False if the release was already running.
        sent_bytes: number of bytes written to ``ssh``.
        seconds: duration of the operation.
        steps: all completed steps. In a dry run, the steps that would be taken.
    """

    device: str
    release: str
    previous: str
    changed: bool
    sent_bytes: int
    seconds: float
    steps: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return {**vars(self), "steps": [vars(step) for step in self.steps]}


Listener = Callable[[Step], object]


def deploy_bundle(
    bundle: Path | str, device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool
) -> DeployResult:
    """Install a bundle on a device, start it, and restore the previous release unless the new one is healthy.

    Nothing changes if the release is already running.

    Args:
        bundle: the bundle's folder or .zip file.
        device: the device.
        options: options of the deployment.
        listener: function that is called with each step and its progress. If it raises an exception before the step
            ``install``, the deployment is canceled. Later, the device finishes the deployment by itself.

    Raises:
        BundleError: the bundle is invalid.
        DeployError: the device cannot run the bundle, the connection failed, or the new release was not healthy and
            the previous one was restored.
    """
    package = _Package.open(bundle)
    config = _read_config(options.config, package.bundle.path)
    progress = _Progress(device.label, listener)
    with Connection(device) as connection:
        facts = _connect(connection, progress)
        python = check_device(facts, package.target, device)
        progress("check", "done", f"{facts.system}, {facts.machine}, Python {python}")
        session = Session(connection, facts)
        status = session.request("status")
        _check_unit(status, device)
        unit = service_unit(package.unit, device.prefix, agent_python(facts, device.label))
        if config is None and not status["config"]:
            config = DEFAULT_CONFIG
        if _is_running(status, package, unit, config, options):
            session.close()
            progress("plan", "skipped", f"release {package.release} is already running")
            return progress.result(connection, package.release, status["previous"], changed=False)
        _check_camera(facts, package.target, device, config, status)
        plan = _Plan.make(package, facts, python, options, session, status["releases"], progress)
        _check_space(plan, status, device)
        progress("plan", "done", f"release {package.release}, {len(plan.wheels)} packages")
        job = plan.job(unit, config, options)
        if options.dry_run:
            session.close()
            plan.describe(progress, status, config is not None, options)
            return progress.result(connection, package.release, status["release"], changed=False)
        _send_agent(session, options)
        _send(session, plan, progress)
        result = _run_job(connection, facts, session, job, progress)
        return progress.result(connection, result["release"], result["previous"], changed=result["changed"])


def rollback(device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool) -> DeployResult:
    """Switch to the previous release of a device, and monitor it like a new release.

    Raises:
        DeployError: there is no previous release, the connection failed, or the previous release is not healthy.
    """
    return _run_without_bundle("rollback", device, options, listener)


def remove(device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool) -> DeployResult:
    """Stop the service and remove everything that deployments installed, except the configuration in /etc/edgerec.

    Raises:
        DeployError: the connection failed or files cannot be removed.
    """
    return _run_without_bundle("remove", device, options, listener)


def device_status(device: Device) -> DeviceStatus:
    """Return the installed releases and the state of the camera.

    Raises:
        DeployError: the connection failed.
    """
    with Connection(device) as connection:
        facts = probe(connection)
        session = Session(connection, facts)
        status = session.request("status")
        session.close()
    return DeviceStatus.from_reply(device, status)


@dataclass(frozen=True)
class _Package:
    """A bundle and the files to install on a device."""

    bundle: Bundle
    target: Target
    files: dict[str, bytes]
    release: str
    unit: str

    @classmethod
    def open(cls, path: Path | str) -> _Package:
        bundle = Bundle.open(path)
        target = Target.of_manifest(bundle.manifest.target)
        if UNIT not in bundle.files:
            choices = [name for name in target_names() if Target.load(name).service]
            raise DeployError(
                f"cannot deploy {path}: it was exported for the target {target.name}, which has no service; export it "
                f"again with --target {' or '.join(choices)}"
            )
        if bundle.warnings:
            raise BundleError(bundle.warnings[0])
        # systemd runs commands in a unit as root, so the unit in the bundle, which may be malicious, is not used.
        unit = install_files(target)[UNIT].decode()
        contents = {**bundle.files, MANIFEST: bundle.manifest_content}
        if bundle.signature is not None:
            contents[SIGNATURE] = bundle.signature
        return cls(bundle, target, contents, sha256(bundle.manifest_content)[:16], unit)


@dataclass
class _Progress:
    """Reports the steps of an operation, and collects the completed steps."""

    device: str
    listener: Listener
    steps: list[Step] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)

    def __call__(self, name: StepName, state: StepState, text: str = "", done: int = 0, total: int = 0) -> None:
        step = Step(self.device, name, state, text, done, total)
        if state != "running":
            self.steps.append(step)
        self.listener(step)

    def result(self, connection: Connection, release: str, previous: str, *, changed: bool) -> DeployResult:
        seconds = time.monotonic() - self.start_s
        return DeployResult(
            self.device, release, previous, changed, connection.sent_bytes, round(seconds, 3), tuple(self.steps)
        )


@dataclass(frozen=True)
class _Plan:
    """The files and packages that a deployment sends to a device and installs there."""

    package: _Package
    contents: Contents
    files: dict[str, str]
    wheels: dict[str, str]
    venv: str
    python: str
    system_packages: bool
    missing: dict[str, int]
    has_venv: bool
    complete: bool
    needed_bytes: int

    @classmethod
    def make(
        cls,
        package: _Package,
        facts: DeviceFacts,
        python: str,
        options: DeployOptions,
        session: Session,
        installed: Sequence[str],
        progress: _Progress,
    ) -> _Plan:
        contents = Contents()
        names = {name: contents.add(content) for name, content in package.files.items()}
        if package.release in installed:
            found = Wheels((), 0)
        else:
            progress("plan", "running", "collecting the packages for the device")
            found = find_wheels(package.bundle, package.target, facts, python, options.find_links)
        wheels = {path.name: contents.add(path) for path in found.paths}
        system_packages = facts.camera_module and "picamera2" in package.target.sources
        path = facts.pythons[python]
        venv = venv_digest(wheels, f"{path} {python}", system_packages)
        if not options.dry_run:
            session.request("lock", host=socket.gethostname())
        reply = session.request("plan", files=contents.sizes, venv=venv, release=package.release)
        missing = dict(reply["missing"])
        if reply["complete"]:
            # A release that was installed without its signature needs only the signature.
            missing = {digest: offset for digest, offset in missing.items() if digest == names.get(SIGNATURE)}
        elif reply["venv"]:
            missing = {digest: offset for digest, offset in missing.items() if digest not in wheels.values()}
        needed = sum(contents.sizes[digest] - offset for digest, offset in missing.items())
        if not reply["venv"] and not reply["complete"]:
            needed += int(found.unpacked_bytes * BYTE_CODE_FACTOR)
        return cls(
            package,
            contents,
            names,
            wheels,
            venv,
            path,
            system_packages,
            missing,
            reply["venv"],
            reply["complete"],
            needed + RESERVED_BYTES if needed else 0,
        )

    def job(self, unit: str, config: str | None, options: DeployOptions) -> dict[str, Any]:
        """Return the agent's job as a JSON-serializable dictionary."""
        manifest = self.package.bundle.manifest
        signers = options.allowed_signers
        return {
            **_job(options),
            "release": self.package.release,
            "name": manifest.name,
            "target": manifest.target,
            "files": self.files,
            "wheels": self.wheels,
            "venv": self.venv,
            "python": self.python,
            "system_packages": self.system_packages,
            "unit": unit,
            "config": config,
            "signers": None if signers is None else _read_text(signers),
        }

    def describe(self, progress: _Progress, status: dict[str, Any], config: bool, options: DeployOptions) -> None:
        """Report the steps of a dry run."""
        size = sum(self.contents.sizes[digest] - offset for digest, offset in self.missing.items())
        release = self.package.release
        progress("send", "planned", f"send {len(self.missing)} files, {size:,} bytes")
        venv = "use the existing" if self.has_venv else "create a"
        installed = f"{venv} virtual environment with {len(self.wheels)} packages"
        if self.complete:
            installed = "it is already installed"
        progress("install", "planned", f"install release {release}: {installed}")
        progress("verify", "planned", "compute the scores of the golden images on the device")
        also = " and its configuration" if config else ""
        progress("switch", "planned", f"switch from release {status['release'] or 'none'} to {release}{also}")
        progress("monitor", "planned", f"wait up to {options.healthy_within_s:g} s until the service is healthy")
        progress("prune", "planned", f"keep {options.keep} releases")


def _run_without_bundle(
    do: Literal["rollback", "remove"], device: Device, options: DeployOptions, listener: Listener
) -> DeployResult:
    progress = _Progress(device.label, listener)
    with Connection(device) as connection:
        facts = _connect(connection, progress)
        if not facts.root:
            raise DeployError(
                f"cannot use {device.label}: root permissions are required; connect as root", step="check"
            )
        session = Session(connection, facts)
        status = session.request("status")
        if do == "rollback" and not status["previous"]:
            raise DeployError(
                f"{device.label} has no previous release to which it can be rolled back: deploy a bundle", step="plan"
            )
        if options.dry_run:
            session.close()
            text = "stop the service and remove all releases"
            if do == "rollback":
                text = f"switch from release {status['release']} to {status['previous']}"
            progress("switch", "planned", text)
            return progress.result(connection, status["release"], status["previous"], changed=False)
        session.request("lock", host=socket.gethostname())
        _send_agent(session, options)
        job = {**_job(options), "do": do}
        result = _run_job(connection, facts, session, job, progress)
        if do == "remove":
            _remove_agent(connection, facts)
        return progress.result(connection, result["release"], result["previous"], changed=result["changed"])


def _remove_agent(connection: Connection, facts: DeviceFacts) -> None:
    """Remove the agent's own files, which it needs until the job has ended, unless there is another deployment."""
    session = Session(connection, replace(facts, agent_digest=""))  # The agent does not run from its own file.
    with suppress(ConnectionLostError):  # Only the agent's own files remain.
        session.request("remove-agent", host=socket.gethostname())
    session.close()


def _job(options: DeployOptions) -> dict[str, Any]:
    return {
        "do": "deploy",
        "id": secrets.token_hex(8),
        "host": socket.gethostname(),
        "healthy_within_s": options.healthy_within_s,
        "settle_s": options.settle_s,
        "keep": max(1, options.keep),
        "require_signature": options.require_signature,
        "allow_downgrade": options.allow_downgrade,
    }


def _connect(connection: Connection, progress: _Progress) -> DeviceFacts:
    progress("connect", "running", connection.device.address)
    facts = probe(connection)
    progress("connect", "done", connection.device.address)
    return facts


def _is_running(
    status: dict[str, Any], package: _Package, unit: str, config: str | None, options: DeployOptions
) -> bool:
    """Return whether the device already runs the release with these options."""
    signers = options.allowed_signers
    return bool(
        status["release"] == package.release
        and not status["on_trial"]
        and status["service"] == "active"
        and status["unit"] == sha256(unit.encode())
        and (config is None or status["config"] == sha256(config.encode()))
        and (signers is None or status["signers"] == sha256(_read_text(signers).encode()))
        and options.require_signature in (None, status["require_signature"])
    )


def _check_unit(status: dict[str, Any], device: Device) -> None:
    """Refuse a device whose service does not belong to the deployment in the device's prefix."""
    if not status["foreign_unit"]:
        return
    if prefix := status["unit_prefix"]:
        raise DeployError(
            f"cannot deploy to {device.label}: its service belongs to a deployment in {prefix}; use --prefix {prefix}, "
            f"or remove that deployment first with --remove --prefix {prefix}",
            step="check",
        )
    raise DeployError(
        f"cannot deploy to {device.label}: a service was installed there with install.sh; remove it first with "
        "sudo sh install.sh --undo",
        step="check",
    )


def _check_camera(
    facts: DeviceFacts, target: Target, device: Device, config: str | None, status: dict[str, Any]
) -> None:
    """Refuse a device without a usable camera if its configuration uses the first camera."""
    auto = status["auto_source"] if config is None else bool(_AUTO_SOURCE.search(config))
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


def _check_space(plan: _Plan, status: dict[str, Any], device: Device) -> None:
    if plan.needed_bytes > status["free_bytes"]:
        raise DeployError(
            f"cannot deploy to {device.label}: {plan.needed_bytes / 1e6:,.0f} MB are required in {device.prefix}, but "
            f"only {status['free_bytes'] / 1e6:,.0f} MB are free; delete files on the device",
            step="check",
        )


def _send_agent(session: Session, options: DeployOptions) -> None:
    """Install or update the agent, and the module that checks signatures if the device requires them.

    The session must hold the lock, so that another deployment does not remove these files.
    """
    status, source = session.request("status"), agent_source()
    if status["agent"] != sha256(source):
        session.request("write", name="agent.py", content=source.decode())
    required = options.require_signature
    if not (status["require_signature"] if required is None else required):
        return
    module = files("edgerec.contract").joinpath("signature.py").read_text(encoding="utf-8")
    session.request("write", name="signature.py", content=module)


def _send(session: Session, plan: _Plan, progress: _Progress) -> None:
    total = sum(plan.contents.sizes[digest] - offset for digest, offset in plan.missing.items())
    if not plan.missing:
        progress("send", "skipped", "all files are already on the device")
        return
    text = f"{len(plan.missing)} files, {total:,} bytes"
    progress("send", "running", text, 0, total)
    send_contents(session, plan.contents, plan.missing, lambda sent: progress("send", "running", text, sent, total))
    progress("send", "done", text)


def _run_job(
    connection: Connection, facts: DeviceFacts, session: Session, job: dict[str, Any], progress: _Progress
) -> dict[str, Any]:
    """Start a job on the device and follow it until it ends, reconnecting if the connection is lost."""
    lines, lost_s = 0, 0.0
    device = connection.device
    session.send(**job)
    while True:
        try:
            for line in session.replies():
                lines, lost_s = lines + 1, 0.0
                if "result" in line:
                    return dict(line["result"])
                progress(line["step"], line["state"], line["text"], line["done"], line["total"])
        except ConnectionLostError:
            lost_s = lost_s or time.monotonic()
            if time.monotonic() - lost_s > RECONNECT_S:
                raise DeployError(
                    f"the connection to {device.label} was lost and cannot be restored: the device finishes the "
                    "deployment by itself; check the result with edgerec devices",
                    step="monitor",
                ) from None
            time.sleep(RECONNECT_PAUSE_S)
            session = _reconnect(connection, session, job["id"], lines)


def _reconnect(connection: Connection, session: Session, job_id: str, lines: int) -> Session:
    """Connect again, and return a session that continues to follow a job."""
    try:
        connection.reopen()
        facts = probe(connection)
        return Session(connection, facts, f"follow --job {job_id} --skip {lines}")
    except DeployError:
        return session  # The caller tries again.


def _read_config(path: Path | None, bundle: Path) -> str | None:
    """Return the content of a valid configuration file of the camera.

    Raises:
        ConfigError: the configuration is invalid, contains a password or token, or needs a display. The service could
            not read a file that other users of the device cannot read.
        DeployError: the file cannot be read.
    """
    if path is None:
        return None
    text = _read_text(path)
    with tempfile.TemporaryDirectory() as folder:
        # Make the copy readable for all users, as on the device, so that secrets in the file are refused.
        copy = Path(folder, path.name)
        copy.write_text(text, encoding="utf-8")
        copy.chmod(0o644)
        try:
            # The service passes the bundle on its command line.
            camera = build(CameraConfig, {**read_values(CameraConfig, copy), "bundle": bundle})
        except ConfigError as error:
            problem = error.problem.partition(", but other users can access")[0]
            if problem != error.problem:
                problem += ", but all users of the device can read this file: use env:NAME or @FILE instead"
            raise ConfigError(error.field.replace(str(copy), str(path)), problem) from None
    if camera.output == "window":
        raise ConfigError(
            f"{path}: output",
            'is "window", which is the default, but the service on a device has no display: add output = "none"',
        )
    return text


def _read_text(path: Path) -> str:
    try:
        return read_at_most(path, MAX_CONFIG_BYTES).decode()
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise DeployError(f"{path} is not a text file: check the path") from None
