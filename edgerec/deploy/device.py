"""Data classes for the address, the properties and the status of a device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from edgerec.contract.target import Target
from edgerec.deploy.replies import StatusReply

PREFIX = "/opt/edgerec"
PREFIX_RULE = "an absolute path that contains only letters, digits, '/', '.', '_' and '-', and no '..'"
_PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)+")
# Names of the video devices of a Raspberry Pi that are not cameras, e.g. video decoders.
_NO_CAMERA = re.compile(r"codec|-isp|pispbe|hevc", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """Address of a device, with the options of the SSH connection.

    Attributes:
        address: ``user@host``, or a host name in the user's SSH configuration.
        name: display name. If empty, the address is displayed.
        port: port of the SSH server, or None to use the port in the SSH configuration.
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
        """Name of the device in messages, which is the display name or, if there is none, the address."""
        return self.name or self.address


def is_valid_prefix(prefix: str) -> bool:
    """Return whether a path is a valid installation folder, without characters that require quoting."""
    return bool(_PREFIX.fullmatch(prefix)) and ".." not in prefix.split("/")


@dataclass(frozen=True)
class DeviceStatus:
    """Status of a device, with its installed releases and the state of its camera.

    Attributes:
        device: display name of the device.
        release: digest of the current release, or an empty string if nothing is installed.
        previous: digest of the release to which ``rollback`` would switch, or an empty string.
        releases: digests of all installed releases, newest first.
        name: name of the current bundle.
        target: target of the current bundle.
        on_trial: whether the current release is still being monitored by a deployment.
        service: state of the systemd unit, e.g. ``active``, ``failed`` or ``inactive``.
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

    @classmethod
    def from_reply(cls, device: Device, reply: StatusReply) -> Self:
        """Create a :class:`DeviceStatus` from the agent's reply."""
        return cls(
            device=device.label,
            release=reply["release"],
            previous=reply["previous"],
            releases=tuple(reply["releases"]),
            name=reply["name"],
            target=reply["target"],
            on_trial=reply["on_trial"],
            service=reply["service"],
            free_bytes=reply["free_bytes"],
            camera=reply["camera"],
            age_s=reply["age_s"],
            require_signature=reply["require_signature"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return {**vars(self), "releases": list(self.releases)}


@dataclass(frozen=True)
class DeviceFacts:
    """Properties of a device that determine whether a bundle can be installed on the device.

    Attributes:
        kernel: operating system kernel, ``Linux`` on supported devices.
        machine: CPU architecture for which programs must be compiled, e.g. ``aarch64``. See ``Target.arch``.
        system: display name of the operating system.
        glibc: version of the GNU C library, e.g. ``2.36``, or an empty string if another C library is used.
        free_bytes: free disk space in the installation folder.
        clock_s: time of the device's clock, as Unix time in seconds.
        pythons: dictionary that maps Python versions to the paths of their interpreters.
        venv_pythons: Python versions that have the modules ``venv`` and ``ensurepip``.
        cameras: paths of the video devices that are cameras.
        camera_module: whether a camera module of a Raspberry Pi is connected.
        picamera2: whether the system's Python can import picamera2, which is required for camera modules.
        systemd: whether systemd manages the services.
        root: ``root`` if the user is root, ``sudo`` if sudo needs no password, or an empty string otherwise.
        agent_digest: SHA-256 digest of the installed agent, or an empty string if no agent is installed.
    """

    kernel: str
    machine: str
    system: str
    glibc: str
    free_bytes: int
    clock_s: int
    pythons: dict[str, str]
    venv_pythons: tuple[str, ...]
    cameras: tuple[str, ...]
    camera_module: bool
    picamera2: bool
    systemd: bool
    root: str
    agent_digest: str

    @classmethod
    def parse(cls, lines: Sequence[str]) -> Self:
        """Parse the lines that ``probe.sh`` prints, and ignore lines of other programs, e.g. a login greeting."""
        values: dict[str, str] = {}
        pythons: dict[str, str] = {}
        venv_pythons, cameras, camera_module = [], [], False
        for line in lines:
            key, _, value = line.partition(" ")
            if key == "python" and (match := re.fullmatch(r"(3\.[0-9]{1,2}) (/[!-~]+)", value)):
                pythons[match[1]] = match[2]
            elif key == "venv":
                venv_pythons.append(value)
            elif key == "camera":
                path, _, name = value.partition(" ")
                camera_module = camera_module or bool(re.search(r"unicam|rp1-cfe", name))
                if not _NO_CAMERA.search(name):
                    cameras.append(path)
            else:
                values[key] = value.strip()
        machine = values.get("machine", "")
        if values.get("bits") == "32":
            machine = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
        return cls(
            kernel=values.get("kernel", ""),
            machine=machine,
            system=values.get("system", "")[:100],
            glibc=values.get("glibc", ""),
            free_bytes=_number(values.get("free_kib", "")) << 10,
            clock_s=_number(values.get("clock", "")),
            pythons=pythons,
            venv_pythons=tuple(version for version in venv_pythons if version in pythons),
            cameras=tuple(cameras),
            camera_module=camera_module,
            picamera2=values.get("picamera2") == "yes",
            systemd=values.get("systemd") == "yes",
            root=values.get("root", ""),
            agent_digest=values.get("agent", ""),
        )

    def uses_system_packages(self, target: Target, python: str) -> bool:
        """Return whether a virtual environment has access to the system's site-packages, like that of install.sh.

        The packages picamera2 and lgpio may also be installed later, because an environment is not created again for
        the same bundle.

        Args:
            target: target of the bundle.
            python: Python version of the virtual environment.
        """
        return "picamera2" in target.sources and self.pythons.get(python) == "/usr/bin/python3"


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else 0
