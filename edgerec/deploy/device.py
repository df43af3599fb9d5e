"""A device that runs bundles: its address, its properties and its status."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "/opt/edgerec"


@dataclass(frozen=True)
class Device:
    """Address of a device, and how to connect to it.

    Attributes:
        address: ``user@host``, or a host name in the user's SSH configuration.
        name: display name. If empty, the address is displayed.
        port: port of the SSH server. None uses the SSH configuration.
        ssh_config: SSH configuration file to use instead of ``~/.ssh/config``, as for ``ssh -F``.
        prefix: installation folder on the device.
        interactive: whether ``ssh`` may ask for a passphrase or password on the terminal. Must be False if several
            devices are used at the same time.
        connect_timeout_s: timeout of a connection attempt in seconds.
    """

    address: str
    name: str = ""
    port: int | None = None
    ssh_config: Path | None = None
    prefix: str = PREFIX
    interactive: bool = False
    connect_timeout_s: float = 20.0

    @property
    def label(self) -> str:
        """Name of the device for messages: its display name, otherwise its address."""
        return self.name or self.address


@dataclass(frozen=True)
class DeviceStatus:
    """Installed releases and the state of the camera on a device.

    Attributes:
        device: display name of the device.
        release: digest of the current release, or an empty string if nothing is installed.
        previous: digest of the release to which ``rollback`` would switch, or an empty string.
        releases: digests of all installed releases, the newest first.
        name: name of the current bundle.
        target: target of the current bundle.
        on_trial: whether the current release is still being monitored by a deployment.
        service: state of the systemd unit, such as ``active``, ``failed`` or ``inactive``.
        free_bytes: free disk space in the installation folder.
        camera: the camera's status file (see :mod:`edgerec.contract.status`), or None if the camera is not running.
        age_s: seconds since the camera wrote its status file, or None if the camera is not running.
        require_signature: whether the device accepts only signed bundles.
    """

    device: str
    release: str
    previous: str
    releases: tuple[str, ...]
    name: str
    target: str
    on_trial: bool
    service: str
    free_bytes: int
    camera: dict[str, Any] | None
    age_s: float | None = None
    require_signature: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return {**vars(self), "releases": list(self.releases)}


@dataclass(frozen=True)
class DeviceFacts:
    """Properties of a device that decide whether a bundle can be installed.

    Attributes:
        machine: CPU architecture, as printed by ``uname -m``.
        system: display name of the operating system.
        pythons: dictionary that maps the Python versions that can create a virtual environment to their paths.
        other_pythons: Python versions that lack ``venv`` or ``ensurepip``.
        glibc: version of the C library, or an empty string.
        free_bytes: free disk space in the installation folder.
        clock_s: the device's clock in seconds since 1970.
        cameras: paths of video devices.
        csi_camera: whether a camera module is connected.
        systemd: whether systemd manages the services.
        root: how commands run as root: ``root``, ``sudo``, or an empty string if this is not possible.
    """

    machine: str
    system: str
    pythons: dict[str, str]
    other_pythons: tuple[str, ...]
    glibc: str
    free_bytes: int
    clock_s: float
    cameras: tuple[str, ...]
    csi_camera: bool
    systemd: bool
    root: str
