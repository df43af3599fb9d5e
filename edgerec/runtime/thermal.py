"""What the machine says of its own state: temperature, clock, throttling, memory."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.utils.child_process import run_program

_ZONES = Path("/sys/class/thermal")
# Kinds of thermal zones that are the processor, most particular first.
_KINDS = ("x86_pkg_temp", "cpu", "soc", "package", "acpitz")
_CLOCKS = Path("/sys/devices/system/cpu")
# Bits of `vcgencmd get_throttled`, as the Raspberry Pi's documentation names them.
_PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


@dataclass(frozen=True)
class Health:
    """One look at the machine; None where it does not tell.

    Attributes:
        temperature_c: of the processor, degrees Celsius.
        clock_mhz: mean over the processors.
        throttled: what a Raspberry Pi says holds it back right now.
    """

    temperature_c: float | None
    clock_mhz: float | None
    throttled: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def look() -> Health:
    """Ask the machine; never fails."""
    clocks = [kilo / 1000 for kilo in _numbers(_CLOCKS, "cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return Health(
        temperature_c=processor_temperature_c(),
        clock_mhz=sum(clocks) / len(clocks) if clocks else None,
        throttled=_pi_throttled(),
    )


def processor_temperature_c(zones: Path | None = None) -> float | None:
    """Degrees Celsius from the kernel's thermal zones (Documentation/driver-api/thermal/sysfs-api); None if unknown."""
    found = []
    for zone in sorted((zones or _ZONES).glob("thermal_zone*")):
        try:
            kind = (zone / "type").read_text().strip().lower()
            degrees = int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
        rank = next((rank for rank, known in enumerate(_KINDS) if known in kind), None)
        if rank is not None and -40 < degrees < 150:
            found.append((rank, -degrees))
    return -min(found)[1] if found else None


def _numbers(folder: Path, pattern: str) -> list[float]:
    found = []
    for path in sorted(folder.glob(pattern)):
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):  # some sensors answer with an error
            continue
    return found


def earlier_throttled() -> tuple[str, ...]:
    """What a Raspberry Pi says held it back at some time since it was started; empty on other machines."""
    bits = _pi_bits()
    return tuple(word for bit, word in _PI_BITS.items() if (bits or 0) >> (bit + 16) & 1)


def _pi_throttled() -> tuple[str, ...] | None:
    bits = _pi_bits()
    return None if bits is None else tuple(word for bit, word in _PI_BITS.items() if bits >> bit & 1)


def _pi_bits() -> int | None:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        return int(run_program([tool, "get_throttled"], timeout_s=2).stdout.strip().partition("=")[2], 16)
    except ValueError:
        return None
