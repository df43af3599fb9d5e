"""Check the Edge TPU (Coral USB stick or PCIe card), its driver and libedgetpu."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.check_packages import numbers
from edgerec.doctor.check_result import CheckResult, CheckState, note, ok, problem
from edgerec.doctor.check_runtimes import Runtime
from edgerec.doctor.check_system import System
from edgerec.runtime.delegate import try_delegate
from edgerec.runtime.video_devices import ROOT, read_text
from edgerec.utils.child_process import ask_python

LIBRARIES = {"Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}
_USB, _PCI = "sys/bus/usb/devices", "sys/bus/pci/devices"
# The USB IDs of the Coral USB stick change when its firmware is loaded.
_STICK_USB_IDS = {("1a6e", "089a"), ("18d1", "9302")}
_CARD_PCI_IDS = ("0x1ac1", "0x089a")
_RULES = ("etc/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_BOOT_CONFIGS = ("boot/firmware/config.txt", "boot/config.txt")
_USB3_MBPS = 5000
_RULE = (
    'printf \'SUBSYSTEM=="usb", ATTRS{idVendor}=="1a6e", GROUP="plugdev"\\n'
    'SUBSYSTEM=="usb", ATTRS{idVendor}=="18d1", ATTRS{idProduct}=="9302", GROUP="plugdev"\\n\' | '
    "sudo tee /etc/udev/rules.d/60-edgetpu.rules && sudo udevadm control --reload && sudo udevadm trigger"
)
# Newer versions of tflite-runtime do not work with Google's libedgetpu 16.0 (see docs/how-to/edge-tpu.md).
_LAST_OLD_RUNTIME = (2, 11)
# Google's gasket-dkms does not build on Linux 6.4 and newer.
_NEW_KERNEL = (6, 4)
# A Raspberry Pi 5 with a Coral PCIe card requires these lines in config.txt.
_PI5_CONFIG = ("dtoverlay=pciex1-compat-pi5,no-mip", "dtoverlay=pcie-32bit-dma-pi5", "kernel=kernel8.img")


@dataclass(frozen=True)
class EdgeTpu:
    """A machine's Edge TPU, its driver and its library.

    Attributes:
        stick: the USB stick's device file; empty if there is no stick.
        speed_mbps: speed of the stick's USB connection in Mbit/s; 0 if unknown.
        stick_open: whether the stick can be opened for writing.
        rule: whether there is a udev rule for the stick.
        card: whether there is a PCIe card.
        apex: the card's device file; empty if the driver has not created one.
        apex_open: whether ``apex`` can be opened for writing.
        driver: whether the card's kernel module is loaded.
        config: lines required for the card but missing from config.txt on a Raspberry Pi 5.
        library: whether libedgetpu can be loaded.
        reason: error if the installed libedgetpu cannot be loaded; empty if it can be loaded or is missing.
        version: version of libedgetpu's Debian package; empty if it was not installed as a package.
        delegate: error if the runtime cannot use libedgetpu; empty if it can, or if no device is connected.
    """

    stick: str = ""
    speed_mbps: int = 0
    stick_open: bool = True
    rule: bool = True
    card: bool = False
    apex: str = ""
    apex_open: bool = True
    driver: bool = False
    config: tuple[str, ...] = ()
    library: bool = False
    reason: str = ""
    version: str = ""
    delegate: str = ""

    @property
    def connected(self) -> bool:
        """Whether an Edge TPU is connected."""
        return bool(self.stick) or self.card

    @property
    def works(self) -> bool:
        """Whether models can run on the Edge TPU."""
        device = (self.stick and self.stick_open) or (self.apex and self.apex_open)
        return bool(device) and self.library and not self.delegate


def collect(root: Path = ROOT) -> EdgeTpu:
    """Return information about this machine's Edge TPU.

    Args:
        root: folder that contains ``sys``, ``proc``, ``dev``, ``etc``, ``boot`` and ``var``.
    """
    stick, speed_mbps = _find_stick(root)
    card = any(_pair(device, "vendor", "device") == _CARD_PCI_IDS for device in (root / _PCI).glob("*"))
    apex = next((str(path) for path in sorted((root / "dev").glob("apex_*"))), "")
    library = LIBRARIES.get(platform.system(), "libedgetpu.so.1")
    _, reason = ask_python("import ctypes, sys; ctypes.CDLL(sys.argv[1]); print(1)", library)
    usable = not reason and any(path and os.access(path, os.W_OK) for path in (stick, apex))
    return EdgeTpu(
        stick=stick,
        speed_mbps=speed_mbps,
        stick_open=not stick or os.access(stick, os.W_OK),
        rule=any("1a6e" in read_text(path) for folder in _RULES for path in (root / folder).glob("*.rules")),
        card=card,
        apex=apex,
        apex_open=not apex or os.access(apex, os.W_OK),
        driver=bool(re.search(r"^apex\b", read_text(root / "proc/modules"), re.M)),
        config=_missing_config(root) if card else (),
        library=not reason,
        reason="" if "cannot open shared object file" in reason and library in reason else reason,
        version=_package_version(root),
        delegate=try_delegate(library) if usable else "",
    )


def check(tpu: EdgeTpu, system: System, runtimes: Sequence[Runtime] = ()) -> list[CheckResult]:
    """Check the Edge TPU's USB port, permissions, driver, library and TFLite runtime."""
    if not tpu.connected:
        library = "; libedgetpu is installed" if tpu.library else ""
        return [ok("Edge TPU", f"no device on USB or PCIe{library}")] if system.os == "Linux" or tpu.library else []
    result = [*_check_stick(tpu, system), *_check_card(tpu, system), *_check_library(tpu, system, runtimes)]
    if not any(one.state is CheckState.PROBLEM for one in result):
        device, library = "stick" if tpu.stick else "card", LIBRARIES.get(system.os, "libedgetpu.so.1")
        result.insert(0, ok("Edge TPU", f"the {device} is ready: use --delegate {library}"))
    return result


def _check_stick(tpu: EdgeTpu, system: System) -> list[CheckResult]:
    result = []
    if tpu.stick and not tpu.stick_open:
        fix = system.join("plugdev") if tpu.rule else _RULE
        reason = "you are not in the group plugdev" if tpu.rule else "there is no udev rule for this device"
        result.append(problem("Edge TPU", f"the stick {tpu.stick} cannot be opened: {reason}", fix))
    if tpu.stick and 0 < tpu.speed_mbps < _USB3_MBPS:
        detail = f"the stick is connected to a USB 2 port ({tpu.speed_mbps} Mbit/s): use a (blue) USB 3 port instead"
        result.append(note("Edge TPU", detail))
    return result


def _check_card(tpu: EdgeTpu, system: System) -> list[CheckResult]:
    if not tpu.card:
        return []
    result = []
    if tpu.config and not tpu.apex:
        detail = f"config.txt lacks {' and '.join(tpu.config)}, which a PCIe card requires on a Raspberry Pi 5"
        lines = "".join(f"{line}\\n" for line in ("[all]", *tpu.config))
        fix = f"printf '{lines}' | sudo tee -a /boot/firmware/config.txt && sudo reboot"
        result.append(problem("Edge TPU", detail, fix))
    if not tpu.apex and tpu.driver:
        detail = "the card's driver is loaded, but /dev/apex_0 does not exist"
        result.append(
            problem("Edge TPU", detail, f"{system.sudo}dmesg | grep -i -e apex -e gasket   # shows the reason")
        )
    elif not tpu.apex:
        detail = "the card's driver is not loaded, so /dev/apex_0 does not exist"
        package = "gasket-dkms   # from Google's package source"
        if numbers(system.kernel)[:2] >= _NEW_KERNEL:
            detail += f". Google's gasket-dkms does not build on kernel {system.kernel}"
            package = "./gasket-dkms_*.deb   # download it from github.com/feranick/gasket-driver/releases"
        result.append(problem("Edge TPU", detail, f"{system.sudo}apt install {package}"))
    elif not tpu.apex_open:
        detail = f"permission denied for {tpu.apex}, which is only accessible to the group apex"
        result.append(problem("Edge TPU", detail, system.join("apex")))
    return result


def _check_library(tpu: EdgeTpu, system: System, runtimes: Sequence[Runtime]) -> list[CheckResult]:
    rebuilt = "./libedgetpu1-std_*.deb   # download it from github.com/feranick/libedgetpu/releases"
    fix = f"{system.sudo}apt install {rebuilt}" if system.os == "Linux" else ""
    if not tpu.library:
        detail = f"libedgetpu cannot be loaded: {tpu.reason}" if tpu.reason else "libedgetpu is missing"
        return [problem("Edge TPU", detail, fix)]
    runtime = next((runtime for runtime in runtimes if not runtime.reason), None)
    old_library = tpu.version != "" and "tf" not in tpu.version.lower()
    new_runtime = runtime is not None and (
        runtime.package == "ai-edge-litert" or numbers(runtime.version)[:2] > _LAST_OLD_RUNTIME
    )
    if runtime and old_library and new_runtime:
        detail = (
            f"libedgetpu {tpu.version}, which was built with TensorFlow 2.5, reportedly crashes with {runtime.package} "
            f"{runtime.version}: use a libedgetpu rebuilt with a newer TensorFlow"
        )
        return [problem("Edge TPU", f"{detail}{f' (here: {tpu.delegate})' if tpu.delegate else ''}", fix)]
    if tpu.delegate:
        return [problem("Edge TPU", f"the runtime cannot use libedgetpu {tpu.version}: {tpu.delegate}", fix)]
    return []


def _find_stick(root: Path) -> tuple[str, int]:
    for device in sorted((root / _USB).glob("*")):
        if _pair(device, "idVendor", "idProduct") in _STICK_USB_IDS:
            bus, number = _pair(device, "busnum", "devnum")
            speed = read_text(device / "speed").partition(".")[0]
            known = bus.isdecimal() and number.isdecimal()
            path = root / f"dev/bus/usb/{int(bus):03}/{int(number):03}" if known else device
            return str(path), int(speed) if speed.isdecimal() else 0
    return "", 0


def _missing_config(root: Path) -> tuple[str, ...]:
    """Return the lines for a PCIe card that are missing from the config.txt of a Raspberry Pi 5."""
    if not re.match(r"Raspberry Pi (5|Compute Module 5)", read_text(root / "proc/device-tree/model")):
        return ()
    config = next((text for name in _BOOT_CONFIGS if (text := read_text(root / name))), "")
    lines = {line.partition("#")[0].strip() for line in config.splitlines()}
    return tuple(line for line in _PI5_CONFIG if line not in lines)


def _package_version(root: Path) -> str:
    """Return the version of libedgetpu's installed Debian package, e.g. ``16.0`` or ``16.0tf2.17.1-1``."""
    for entry in read_text(root / "var/lib/dpkg/status").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Package", "").startswith("libedgetpu1-") and fields.get("Status", "").endswith(" installed"):
            return fields.get("Version", "")
    return ""


def _pair(device: Path, first: str, second: str) -> tuple[str, str]:
    return read_text(device / first), read_text(device / second)
