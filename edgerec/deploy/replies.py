"""Types of the agent's replies, and the error for a reply that does not have the expected type."""

from __future__ import annotations

from typing import Any, TypedDict, TypeVar

from edgerec.errors import DeployError
from edgerec.utils.json_types import check_type

_Reply = TypeVar("_Reply")


class StatusReply(TypedDict):
    """Status of a device. See :class:`~edgerec.deploy.device.DeviceStatus`.

    ``config``, ``signers``, ``unit`` and ``agent`` are digests of files, or empty strings if the files are missing.
    """

    release: str
    previous: str
    releases: list[str]
    name: str
    target: str
    on_trial: bool
    service: str
    free_bytes: int
    camera: dict[str, Any] | None
    age_s: float | None
    require_signature: bool
    config: str
    auto_source: bool
    signers: str
    unit: str
    agent: str
    unit_prefix: str
    foreign_unit: bool


class PlanReply(TypedDict):
    """The parts of a release that are already on the device. See :class:`~edgerec.deploy.plan.Plan`."""

    missing: dict[str, int]
    venv: bool
    complete: bool
    free_bytes: int


class StepReply(TypedDict):
    """A step of a job. See :class:`~edgerec.deploy.operation.Step`."""

    step: str
    state: str
    text: str
    done: int
    total: int


class JobResult(TypedDict):
    """Result of a job. See :class:`~edgerec.deploy.operation.DeployResult`."""

    release: str
    previous: str
    changed: bool


def check_reply(label: str, reply: Any, expected: type[_Reply]) -> _Reply:
    """Check the type of a reply with :func:`check_type`, and return the reply.

    Args:
        label: display name of the device.
        reply: the reply, or an entry of a reply.
        expected: TypedDict that the reply must match.

    Raises:
        DeployError: a value is missing or has the wrong type.
    """
    try:
        check_type(reply, expected)
    except ValueError as error:
        raise invalid_reply(label, str(error)) from None
    return reply


def invalid_reply(label: str, reason: str, step: str = "") -> DeployError:
    """Return the error for an invalid reply from a device."""
    return DeployError(
        f"{label} sent an invalid reply ({reason}): run the command again, and check the device's storage if the error "
        "persists",
        step=step,
    )
