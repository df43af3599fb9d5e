"""Generate install.sh, a systemd unit, a Dockerfile and an Ansible role, which install a bundle on devices."""

from __future__ import annotations

import re
import shlex

from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.utils.package_data import shipped

UNIT = "edgerec.service"
# The Dockerfile uses the first of these Debian releases whose Python version the target supports.
_SUITES = {"3.13": "trixie", "3.11": "bookworm"}
# 32-bit ARM is excluded, because pip in a 32-bit container on a 64-bit kernel would choose 64-bit wheels.
_PLATFORMS = {"aarch64": "linux/arm64", "x86_64": "linux/amd64"}
# For each camera type, the systemd unit must grant access to these devices, named as in /proc/devices.
_DEVICES = {"opencv": ("char-video4linux",), "picamera2": ("char-video4linux", "char-media", "char-dma_heap")}
# These packages are available only in Raspberry Pi OS.
CSI_PACKAGES = ("python3-picamera2",)
_ANSIBLE = (
    "playbook.yml",
    "roles/edgerec/defaults/main.yml",
    "roles/edgerec/handlers/main.yml",
    "roles/edgerec/meta/main.yml",
    "roles/edgerec/tasks/main.yml",
    "roles/edgerec/templates/camera.toml.j2",
)
_EDGETPU = ("char-usb_device", "char-apex")


def install_files(target: Target) -> dict[str, bytes]:
    """Return the contents of install.sh, the systemd unit, the Dockerfile and the Ansible role, by path in the bundle.

    Only the target's values are inserted into the files, and each value is validated or quoted. The bundle's name and
    labels are never inserted.

    Raises:
        TargetError: the target contains an invalid architecture, package name or Python version.
    """
    packages = " ".join(_validated("system_packages", target.system_packages, r"[a-z0-9][a-z0-9+.-]+"))
    arch = _validated("arch", target.arch, r"\w+")
    install = {
        "ARCH": " ".join(arch),
        "PYTHONS": " ".join(_validated("python", target.python, r"3\.\d{1,2}")),
        "PACKAGES": f"python3 {packages}".strip(),
        "SITE": "--system-site-packages" if _sees_system_packages(target) else "",
        "CSI": " ".join(CSI_PACKAGES) if "picamera2" in target.sources else "",
    }
    files = {
        "install.sh": _filled("install.sh", {key: shlex.quote(value) for key, value in install.items()}),
        UNIT: _filled(UNIT, _unit(target)),
    }
    suite = next((name for python, name in _SUITES.items() if python in target.python), "")
    if suite and arch and arch[0] in _PLATFORMS:
        platforms = {"PLATFORM": _PLATFORMS[arch[0]], "PLATFORMS": ",".join(_PLATFORMS.values())}
        files["Dockerfile"] = _filled("Dockerfile", {"SUITE": suite} | platforms)
    return {name: text.encode() for name, text in files.items()} | _ansible_files()


def _ansible_files() -> dict[str, bytes]:
    """Return the contents of the Ansible files, which are the same for all bundles."""
    folder = shipped("targets") / "service"
    return {f"ansible/{name}": (folder / "ansible" / name).read_bytes() for name in _ANSIBLE}


def _sees_system_packages(target: Target) -> bool:
    """Return whether the virtual environment needs access to Debian's Python packages, e.g. for picamera2."""
    return "picamera2" in target.sources or any("--system-site-packages" in line for line in target.commands)


def _unit(target: Target) -> dict[str, str]:
    devices = dict.fromkeys(name for source in target.sources for name in _DEVICES.get(source, ()))
    groups = ["video"]
    if target.delegate:
        devices |= dict.fromkeys(_EDGETPU)
        groups.append("plugdev")
    return {"GROUPS": " ".join(groups), "DEVICES": "\n".join(f"DeviceAllow={name} rw" for name in devices)}


def _validated(key: str, values: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    """Return ``values``, or raise :class:`TargetError` if one of them does not match the regular expression."""
    if invalid := [value for value in values if not re.fullmatch(pattern, value, re.ASCII)]:
        raise TargetError(f"the target's {key} contains the invalid value {invalid[0]!r}, which must match {pattern}")
    return values


def _filled(name: str, values: dict[str, str]) -> str:
    """Return a template from ``targets/service`` with each ``@KEY@`` replaced by its value."""
    text = (shipped("targets") / "service" / name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)
