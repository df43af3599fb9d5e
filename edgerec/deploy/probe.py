"""Query the properties of a device, and check whether the device can run a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files

from edgerec.contract.target import Target
from edgerec.deploy.device import Device, DeviceFacts
from edgerec.deploy.ssh import Connection
from edgerec.errors import DeployError

# If the clock of a device is earlier than this Unix time in seconds, the clock has not been set.
MIN_CLOCK_S = 1704067200  # 2024-01-01


def probe(connection: Connection) -> DeviceFacts:
    """Connect to a device, and return the properties of the device.

    Raises:
        DeployError: the connection failed.
    """
    script = files("edgerec.deploy").joinpath("probe.sh").read_text(encoding="utf-8")
    return DeviceFacts.parse(connection.open(script, connection.device.prefix, end="end"))


def check_device(facts: DeviceFacts, target: Target, device: Device) -> str:
    """Check whether a device can run bundles for a target, and return the Python version to use.

    Raises:
        DeployError: the device cannot run bundles for this target. The message contains the reason and a solution.
    """
    reason = _machine_problem(facts, target, device) or _system_problem(facts, device)
    if reason:
        raise DeployError(f"cannot deploy to {device.label}: {reason}", step="check")
    suitable = [version for version in facts.pythons if not target.python or version in target.python]
    # Only the system's own Python can import picamera2 and other Python packages of Debian.
    if facts.camera_module and "picamera2" in target.sources:
        suitable = [version for version in suitable if facts.pythons[version] == "/usr/bin/python3"]
    for version in suitable:
        if version in facts.venv_pythons:
            return version
    raise DeployError(f"cannot deploy to {device.label}: {_python_problem(facts, target, suitable)}", step="check")


def _machine_problem(facts: DeviceFacts, target: Target, device: Device) -> str:
    if facts.kernel != "Linux":
        return f"its operating system is {facts.kernel or 'unknown'}, but only Linux is supported"
    if target.arch and facts.machine not in target.arch:
        return (
            f"its architecture is {facts.machine}, but the bundle is for {' or '.join(target.arch)} (target "
            f"{target.name}); export the bundle again with a --target for {facts.machine}"
        )
    if not facts.root:
        user = device.address.rpartition("@")[0] or "the user"
        return (
            f"root permissions are required, but {user} cannot use sudo without a password; connect as root, or allow "
            f"sudo without a password for {user}"
        )
    return ""


def _system_problem(facts: DeviceFacts, device: Device) -> str:
    if not facts.systemd:
        return "it does not run systemd, which starts the camera; use the Dockerfile in the bundle instead"
    if facts.clock_s < MIN_CLOCK_S:
        year = time.gmtime(max(0, facts.clock_s)).tm_year
        return (
            f"its clock is set to the year {year}; set the clock or start time synchronization with sudo timedatectl "
            "set-ntp true"
        )
    return ""


def _python_problem(facts: DeviceFacts, target: Target, suitable: Sequence[str]) -> str:
    if suitable:
        return f"Python {suitable[0]} cannot create virtual environments; run sudo apt-get install python3-venv"
    supported = " or ".join(target.python)
    if facts.pythons:
        return (
            f"it has Python {', '.join(facts.pythons)}, but the bundle needs {supported}; install a supported version, "
            "or update the operating system"
        )
    return f"Python is not installed; run sudo apt-get install python3 python3-venv (supported: {supported})"
