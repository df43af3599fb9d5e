"""Data classes for the options, steps and result of an operation on a device, e.g. a deployment or a rollback."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgerec.deploy.ssh import Connection

StepName = Literal["connect", "check", "plan", "send", "install", "verify", "switch", "monitor", "restore", "prune"]
StepState = Literal["planned", "running", "done", "skipped"]
# Time in seconds for which a new release must stay healthy before the agent accepts the release.
SETTLE_S = 10.0


@dataclass(frozen=True)
class DeployOptions:
    """Options of a deployment or another operation on a device.

    Attributes:
        config: configuration file of the camera, which replaces ``/etc/edgerec/camera.toml`` on the device. If None,
            the device keeps its configuration.
        healthy_within_s: time limit in seconds for the new release to classify frames. If the time limit is exceeded,
            the previous release is restored.
        settle_s: time in seconds for which the new release must stay healthy.
        keep: number of releases to keep on the device, including the new one.
        dry_run: whether to only report the steps, without changing the device.
        require_signature: whether the device accepts only signed bundles from now on. None keeps the device's setting.
        allowed_signers: file with the public keys whose signatures the device accepts. It replaces
            ``/etc/edgerec/allowed_signers`` on the device. If None, the device keeps its file.
        allow_downgrade: whether to accept a signed bundle that is older than the newest one accepted by the device.
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
        text: description of the step, e.g. the number of files to send.
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
        release: digest of the release that now runs, or an empty string after ``remove``. If steps are planned in a dry
            run, the release that would run.
        previous: digest of the release that ran before, or an empty string. If steps are planned in a dry run, the
            release that runs now.
        changed: whether the device was changed. False if the release was already running.
        sent_bytes: number of bytes sent to the device over SSH.
        seconds: duration of the operation.
        steps: all completed steps, or the planned steps in a dry run.
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


@dataclass
class Progress:
    """A callable that reports the steps of an operation, and collects the completed steps."""

    device: str
    listener: Listener
    steps: list[Step] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)

    def __call__(self, name: StepName, state: StepState, text: str = "", done: int = 0, total: int = 0) -> None:
        """Report a step to the listener, and store the step unless it is still running."""
        step = Step(self.device, name, state, text, done, total)
        if state != "running":
            self.steps.append(step)
        self.listener(step)

    def result(self, connection: Connection, release: str, previous: str, *, changed: bool) -> DeployResult:
        """Return the result of the operation with all completed steps."""
        seconds = time.monotonic() - self.start_s
        return DeployResult(
            self.device, release, previous, changed, connection.sent_bytes, round(seconds, 3), tuple(self.steps)
        )


def new_job(options: DeployOptions) -> dict[str, Any]:
    """Return a job for the agent with a new ID and all entries that do not depend on a bundle."""
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
