"""What a bundle brings for a machine that shall run it by itself: install.sh, a service for systemd, a Dockerfile."""

from __future__ import annotations

import re
import shlex

from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.utils.package_data import shipped

# Debian's releases by the Python that they have; an image is made of the newest that the target takes.
_SUITES = {"3.13": "trixie", "3.11": "bookworm"}
# 32-bit ARM is left out: under a 64-bit kernel pip takes such an image for a 64-bit machine.
_PLATFORMS = {"aarch64": "linux/arm64", "x86_64": "linux/amd64"}
# The kernel's names of what a source opens (/proc/devices).
_DEVICES = {"opencv": ("char-video4linux",), "picamera2": ("char-video4linux", "char-media", "char-dma_heap")}
# Debian packages for a camera module (CSI); only Raspberry Pi OS has them.
CSI_PACKAGES = ("python3-picamera2",)
_EDGETPU = ("char-usb_device", "char-apex")


def service_files(target: Target) -> dict[str, bytes]:
    """The files by their names in the bundle.

    Only the target's own words get into them, each checked or quoted; nothing of a bundle's name or labels does.

    Raises:
        TargetError: the target names a processor or package as none is named.
    """
    packages = " ".join(_words("system_packages", target.system_packages, r"[a-z0-9][a-z0-9+.-]+"))
    arch = _words("arch", target.arch, r"\w+")
    install = {
        "ARCH": " ".join(arch),
        "PYTHONS": " ".join(_words("python", target.python, r"3\.\d{1,2}")),
        "PACKAGES": f"python3 {packages}".strip(),
        "SITE": "--system-site-packages" if _sees_system_packages(target) else "",
        "CSI": " ".join(CSI_PACKAGES) if "picamera2" in target.sources else "",
    }
    files = {
        "install.sh": _filled("install.sh", {key: shlex.quote(value) for key, value in install.items()}),
        "edgerec.service": _filled("edgerec.service", _unit(target)),
    }
    suite = next((name for python, name in _SUITES.items() if python in target.python), "")
    if suite and arch and arch[0] in _PLATFORMS:
        files["Dockerfile"] = _filled("Dockerfile", {"SUITE": suite, "PLATFORM": _PLATFORMS[arch[0]]})
    return {name: text.encode() for name, text in files.items()}


def _sees_system_packages(target: Target) -> bool:
    """Return whether the virtual environment must include Debian's Python packages, because of picamera2."""
    return "picamera2" in target.sources or any("--system-site-packages" in line for line in target.commands)


def _unit(target: Target) -> dict[str, str]:
    devices = dict.fromkeys(name for source in target.sources for name in _DEVICES.get(source, ()))
    groups = ["video"]
    if target.delegate:
        devices |= dict.fromkeys(_EDGETPU)
        groups.append("plugdev")
    return {"GROUPS": " ".join(groups), "DEVICES": "\n".join(f"DeviceAllow={name} rw" for name in devices)}


def _words(key: str, values: tuple[str, ...], form: str) -> tuple[str, ...]:
    if wrong := [value for value in values if not re.fullmatch(form, value, re.ASCII)]:
        raise TargetError(f"the target's {key} has {wrong[0]!r}: none is named so (expected {form})")
    return values


def _filled(name: str, values: dict[str, str]) -> str:
    text = (shipped("targets") / "service" / name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)
