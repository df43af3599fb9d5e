"""Deploy a bundle to one device, roll it back, and remove it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgerec.deploy.device import Device, DeviceStatus
from edgerec.errors import DeployError

StepName = Literal["connect", "check", "plan", "send", "install", "verify", "switch", "monitor", "restore", "prune"]
StepState = Literal["planned", "running", "done", "skipped"]


@dataclass(frozen=True)
class DeployOptions:
    """Options of a deployment.

    Attributes:
        config: configuration file of the camera, which replaces ``/etc/edgerec/camera.toml`` on the device. If None,
            the device keeps its configuration.
        healthy_within_s: time in seconds in which the new release must classify frames before it is rolled back.
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
        text: one sentence about the step, e.g. what is sent.
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
        steps: all steps. In a dry run, the steps that would be taken.
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

    Nothing changes if the release is already installed and healthy.

    Args:
        bundle: the bundle's folder or .zip file.
        device: the device.
        options: options of the deployment.
        listener: function that is called with each step and its progress. If it raises an exception before the step
            ``switch``, the deployment is canceled.

    Raises:
        BundleError: the bundle is invalid.
        DeployError: the device cannot run the bundle, the connection failed, or the new release was not healthy and
            the previous one was restored.
    """
    raise DeployError("deployment is not available yet: update edgerec")


def rollback(device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool) -> DeployResult:
    """Switch to the previous release of a device, and monitor it like a new release.

    Raises:
        DeployError: there is no previous release, the connection failed, or the previous release is not healthy.
    """
    raise DeployError("rollback is not available yet: update edgerec")


def remove(device: Device, options: DeployOptions = DeployOptions(), listener: Listener = bool) -> DeployResult:
    """Stop the service and remove everything that deployments installed, except the configuration in /etc/edgerec.

    Raises:
        DeployError: the connection failed or files cannot be removed.
    """
    raise DeployError("removal is not available yet: update edgerec")


def device_status(device: Device) -> DeviceStatus:
    """Return the installed releases and the state of the camera.

    Raises:
        DeployError: the connection failed.
    """
    raise DeployError("the status is not available yet: update edgerec")
