"""The Edge TPU: a Coral stick, or a card."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edgerec.runtime.delegate import try_delegate
from edgerec.runtime.doctor.child import ask
from edgerec.runtime.doctor.finding import Finding, note, ok, problem
from edgerec.runtime.doctor.system import System

LIBRARIES = {"Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}
_USB, _PCI = Path("/sys/bus/usb/devices"), Path("/sys/bus/pci/devices")
# The stick's names before and after it got its firmware, and the card's.
_STICK = {("1a6e", "089a"), ("18d1", "9302")}
_CARD = ("0x1ac1", "0x089a")
_RULES = ("/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
_USB3_MBPS = 5000
_RULE = (
    'printf \'SUBSYSTEM=="usb", ATTRS{idVendor}=="1a6e", GROUP="plugdev"\\n'
    'SUBSYSTEM=="usb", ATTRS{idVendor}=="18d1", ATTRS{idProduct}=="9302", GROUP="plugdev"\\n\' | '
    "sudo tee /etc/udev/rules.d/60-edgetpu.rules && sudo udevadm control --reload && sudo udevadm trigger"
)


@dataclass(frozen=True)
class EdgeTpu:
    """What there is of one.

    Attributes:
        stick: the device file of one on USB; empty without.
        speed_mbps: of its port; 0 is not known.
        stick_open: whether we may write to it.
        rule: whether udev has a rule for it.
        card: whether one is on PCIe.
        apex: the card's device file; empty where its driver made none.
        apex_open: whether we may write to that.
        library: whether libedgetpu loads; why not otherwise, where it is there.
        delegate: why the runtime does not take it; empty when it does, or was not tried.
    """

    stick: str = ""
    speed_mbps: int = 0
    stick_open: bool = True
    rule: bool = True
    card: bool = False
    apex: str = ""
    apex_open: bool = True
    library: bool = False
    reason: str = ""
    delegate: str = ""

    @property
    def there(self) -> bool:
        """Whether one is plugged in."""
        return bool(self.stick) or self.card

    @property
    def works(self) -> bool:
        """Whether a model can run on it."""
        return self.there and self.library and not self.delegate


def look() -> EdgeTpu:
    """This machine's."""
    stick, speed = _stick()
    card = any(_pair(device, "vendor", "device") == _CARD for device in _PCI.glob("*"))
    apex = next((str(path) for path in sorted(Path("/dev").glob("apex_*"))), "")
    library = LIBRARIES.get(platform.system(), "libedgetpu.so.1")
    reason = ask("import ctypes, sys; ctypes.CDLL(sys.argv[1]); print(1)", library).reason
    usable = not reason and any(path and os.access(path, os.W_OK) for path in (stick, apex))
    return EdgeTpu(
        stick=stick,
        speed_mbps=speed,
        stick_open=not stick or os.access(stick, os.W_OK),
        rule=any(_names_stick(path) for folder in _RULES for path in Path(folder).glob("*.rules")),
        card=card,
        apex=apex,
        apex_open=not apex or os.access(apex, os.W_OK),
        library=not reason,
        reason="" if "cannot open shared object file" in reason and library in reason else reason,
        delegate=try_delegate(library) if usable else "",
    )


def findings(tpu: EdgeTpu, system: System) -> list[Finding]:
    """The device, its port, our rights, its library, and whether the runtime takes it."""
    if not tpu.there:
        more = "; libedgetpu is installed" if tpu.library else ""
        return [ok("Edge TPU", f"none on USB or PCIe{more}")] if system.os == "Linux" or tpu.library else []
    found = []
    if tpu.stick and not tpu.stick_open:
        mend = system.join("plugdev") if tpu.rule else _RULE
        why = "you are not in the group plugdev" if tpu.rule else "udev has no rule for it"
        found.append(problem("Edge TPU", f"the stick {tpu.stick} is closed to you: {why}", mend))
    if tpu.stick and 0 < tpu.speed_mbps < _USB3_MBPS:
        found.append(
            note("Edge TPU", f"on a USB 2 port ({tpu.speed_mbps} Mbit/s): plug it into a USB 3 one, they are blue")
        )
    if tpu.card and not tpu.apex:
        mend = f"{system.sudo}apt install gasket-dkms"
        found.append(problem("Edge TPU", "the card is there, and no driver for it (/dev/apex_0)", mend))
    elif tpu.card and not tpu.apex_open:
        found.append(problem("Edge TPU", f"{tpu.apex} is closed to you: it is for the group apex", system.join("apex")))
    if not tpu.library:
        why = f"libedgetpu does not load: {tpu.reason}" if tpu.reason else "libedgetpu is missing"
        mend = f"{system.sudo}apt install libedgetpu1-std   # from Coral's package source: coral.ai/software"
        found.append(problem("Edge TPU", why, mend))
    elif tpu.delegate:
        mend = f"{system.sudo}apt install --only-upgrade libedgetpu1-std"
        found.append(problem("Edge TPU", f"the runtime does not take it: {tpu.delegate}", mend))
    if not found or tpu.works:
        where = "the stick" if tpu.stick else "the card"
        found.insert(0, ok("Edge TPU", f"{where} answers: --delegate {LIBRARIES.get(system.os, 'libedgetpu.so.1')}"))
    return found


def _stick() -> tuple[str, int]:
    for device in sorted(_USB.glob("*")):
        if _pair(device, "idVendor", "idProduct") in _STICK:
            bus, number = _pair(device, "busnum", "devnum")
            speed = _read(device / "speed").partition(".")[0]
            path = f"/dev/bus/usb/{int(bus):03}/{int(number):03}" if bus.isdigit() and number.isdigit() else str(device)
            return path, int(speed) if speed.isdigit() else 0
    return "", 0


def _pair(device: Path, first: str, second: str) -> tuple[str, str]:
    return _read(device / first), _read(device / second)


def _names_stick(rules: Path) -> bool:
    return "1a6e" in _read(rules)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
