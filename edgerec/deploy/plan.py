"""Determine the files that a deployment sends to a device, and the disk space that the deployment requires."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.bundle import MANIFEST, Bundle
from edgerec.contract.signature import SIGNATURE
from edgerec.contract.target import Target, target_names
from edgerec.deploy.device import Device, DeviceFacts
from edgerec.deploy.operation import DeployOptions, Progress, new_job
from edgerec.deploy.replies import PlanReply, StatusReply, check_reply
from edgerec.deploy.service_config import read_text
from edgerec.deploy.session import Session
from edgerec.deploy.transfer import Contents, missing_files
from edgerec.deploy.wheels import Wheels, find_wheels, venv_digest
from edgerec.errors import BundleError, DeployError
from edgerec.export.install_and_service_files import UNIT, install_files
from edgerec.utils.atomic import sha256
from edgerec.utils.text import counted

NOTHING_TO_SEND = "all files are already on the device"
# Ratio of a wheel's installed size, including its .pyc files, to its unpacked size.
BYTE_CODE_FACTOR = 1.4
# Free disk space in bytes to reserve for log files.
RESERVED_BYTES = 64 << 20


@dataclass(frozen=True)
class Package:
    """A bundle that is ready for installation on a device.

    Attributes:
        bundle: the bundle.
        target: target for which the bundle was exported.
        files: contents of all files of the release, keyed by file name.
        release: digest of the release.
        unit: systemd unit of the service, which does not contain the paths on the device yet.
    """

    bundle: Bundle
    target: Target
    files: dict[str, bytes]
    release: str
    unit: str

    @classmethod
    def open(cls, path: Path | str) -> Package:
        """Open a bundle's folder or .zip file.

        Raises:
            BundleError: the bundle is invalid.
            DeployError: the bundle's target does not support the camera service.
        """
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
        # The unit is not read from the bundle, because a malicious unit could run commands as root.
        unit = install_files(target)[UNIT].decode()
        contents = {**bundle.files, MANIFEST: bundle.manifest_content}
        if bundle.signature is not None:
            contents[SIGNATURE] = bundle.signature
        return cls(bundle, target, contents, sha256(bundle.manifest_content)[:16], unit)


@dataclass(frozen=True)
class Plan:
    """A plan of the files and packages that a deployment sends to a device and installs.

    Attributes:
        package: the bundle.
        contents: contents of the bundle's files and of the wheels.
        files: digests of the release's files, keyed by file name.
        wheels: digests of the wheels, keyed by file name.
        venv: digest of the virtual environment.
        python: path of the device's Python interpreter.
        system_packages: whether the virtual environment can import the packages of the system's Python.
        missing: number of bytes that the device has already received of each file to send, keyed by digest.
        has_venv: whether the device already has the virtual environment.
        complete: whether the release is already installed.
        needed_bytes: disk space required on the device, or 0 if nothing is sent or installed.
        free_bytes: free disk space on the device after the remains of failed installations were deleted.
    """

    package: Package
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
    free_bytes: int

    @classmethod
    def make(
        cls,
        package: Package,
        facts: DeviceFacts,
        python: str,
        options: DeployOptions,
        session: Session,
        installed: Sequence[str],
        progress: Progress,
    ) -> Plan:
        """Query which files the device already has, and create a plan.

        Args:
            package: the bundle.
            facts: properties of the device.
            python: version of the device's Python interpreter.
            options: options of the deployment. Unless ``dry_run`` is true, the session acquires the device's lock.
            session: session with the device.
            installed: digests of the installed releases.
            progress: receives the steps of the deployment.
        """
        contents = Contents()
        names = {name: contents.add(content) for name, content in package.files.items()}
        if package.release in installed:
            found = Wheels((), 0)
        else:
            progress("plan", "running", "collecting the packages for the device")
            found = find_wheels(package.bundle, package.target, facts, python, options.find_links)
        wheels = {path.name: contents.add(path) for path in found.paths}
        system_packages = facts.uses_system_packages(package.target, python)
        path = facts.pythons[python]
        venv = venv_digest(wheels, f"{path} {python}", system_packages)
        if not options.dry_run:
            session.request("lock", host=socket.gethostname())
        answer = session.request("plan", files=contents.sizes, venv=venv, release=package.release)
        reply = check_reply(session.label, answer, PlanReply)
        missing = missing_files(session.label, reply, contents)
        if reply["complete"]:
            # If the release is already installed, only a new signature is sent.
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
            reply["free_bytes"],
        )

    @property
    def missing_bytes(self) -> int:
        """Total number of bytes to send to the device."""
        return sum(self.contents.sizes[digest] - offset for digest, offset in self.missing.items())

    @property
    def files_to_send(self) -> str:
        """Number and total size of the files to send, as text."""
        return f"{counted(len(self.missing), 'file')}, {counted(self.missing_bytes, 'byte')}"

    @property
    def summary(self) -> str:
        """Digest of the release, and the number of packages to install, as text."""
        release = self.package.release
        if self.complete:
            return f"release {release} is already installed"
        return f"release {release}, {counted(len(self.wheels), 'package')}"

    def job(self, unit: str, config: str | None, options: DeployOptions) -> dict[str, Any]:
        """Return the agent's job as a JSON-serializable dictionary."""
        manifest = self.package.bundle.manifest
        signers = options.allowed_signers
        return {
            **new_job(options),
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
            "signers": None if signers is None else read_text(signers),
        }

    def describe(self, progress: Progress, status: StatusReply, config: bool, options: DeployOptions) -> None:
        """Report the planned steps of a deployment without performing them."""
        release = self.package.release
        if self.missing:
            progress("send", "planned", f"send {self.files_to_send}")
        else:
            progress("send", "skipped", NOTHING_TO_SEND)
        venv = "in the existing virtual environment"
        if not self.has_venv:
            venv = f"and {counted(len(self.wheels), 'package')} in a new virtual environment"
        if self.complete:
            progress("install", "skipped", "the release is already installed")
        else:
            progress("install", "planned", f"install release {release} {venv}")
        progress("verify", "planned", "compute the scores of the golden images on the device")
        new = [
            *(["a new configuration"] if config else []),
            *(["new allowed signers"] if options.allowed_signers else []),
        ]
        switch = describe_switch(status["release"], release)
        progress("switch", "planned", f"{switch} with {' and '.join(new)}" if new else switch)
        describe_trial(progress, options)


def describe_switch(current: str, release: str) -> str:
    """Describe the planned switch to a release. ``current`` is an empty string if there is no current release."""
    if not current:
        return f"start the first release {release}"
    return f"restart release {release}" if current == release else f"switch from release {current} to {release}"


def describe_trial(progress: Progress, options: DeployOptions) -> None:
    """Report the planned steps after the switch to another release."""
    limit_s, settle_s = options.healthy_within_s, options.settle_s
    progress(
        "monitor",
        "planned",
        f"wait up to {limit_s:g} s until the service classifies frames, and monitor it for another {settle_s:g} s",
    )
    # The current and the previous release are never deleted.
    progress("prune", "planned", f"keep up to {max(2, options.keep)} releases, and delete older ones")


def check_space(plan: Plan, device: Device) -> None:
    """Raise an error if a deployment requires more disk space than the device has.

    Raises:
        DeployError: the device has too little free space.
    """
    if plan.needed_bytes > plan.free_bytes:
        raise DeployError(
            f"cannot deploy to {device.label}: {plan.needed_bytes / 1e6:,.0f} MB are required in {device.prefix}, but "
            f"only {plan.free_bytes / 1e6:,.0f} MB are free; delete files on the device",
            step="check",
        )
