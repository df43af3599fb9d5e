"""Read this machine's CPU temperature, clock frequency and throttling state."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.utils.child_process import run_program

_ZONES = Path("/sys/class/thermal")
# Linux thermal zone types for CPU sensors, in order of preference.
_KINDS = ("x86_pkg_temp", "cpu", "soc", "package", "acpitz")
_CLOCKS = Path("/sys/devices/system/cpu")
# Bits in the output of `vcgencmd get_throttled`. Bits 16 to 19 are set if the condition has occurred since boot.
_PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


@dataclass(frozen=True)
class Health:
    """CPU temperature, clock frequency and throttling state. A field is None if its value is unknown.

    Attributes:
        temperature_c: CPU temperature in degrees Celsius.
        clock_mhz: mean clock frequency of the CPU cores in MHz.
        throttled: reasons why a Raspberry Pi is throttled now.
    """

    temperature_c: float | None
    clock_mhz: float | None
    throttled: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return asdict(self)


def read_health() -> Health:
    """Return the machine's current temperature, clock and throttling state. Never raises an exception."""
    clocks_mhz = [khz / 1000 for khz in _numbers(_CLOCKS, "cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return Health(
        temperature_c=processor_temperature_c(),
        clock_mhz=sum(clocks_mhz) / len(clocks_mhz) if clocks_mhz else None,
        throttled=_pi_throttled(),
    )


def processor_temperature_c(zones: Path | None = None) -> float | None:
    """Return the CPU temperature in degrees Celsius, or None if it is unknown.

    The source is the thermal zones of the Linux kernel (Documentation/driver-api/thermal/sysfs-api). If several zones
    have the same type, the highest temperature is returned.

    Args:
        zones: folder that contains the thermal zones. None uses ``/sys/class/thermal``.
    """
    candidates = []
    for zone in sorted((zones or _ZONES).glob("thermal_zone*")):
        try:
            kind = (zone / "type").read_text().strip().lower()
            degrees = int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
        rank = next((rank for rank, known in enumerate(_KINDS) if known in kind), None)
        if rank is not None and -40 < degrees < 150:
            candidates.append((rank, -degrees))
    return -min(candidates)[1] if candidates else None


def _numbers(folder: Path, pattern: str) -> list[float]:
    numbers = []
    for path in sorted(folder.glob(pattern)):
        try:
            numbers.append(float(path.read_text()))
        except (OSError, ValueError):  # reading some sensors fails
            continue
    return numbers


def earlier_throttled() -> tuple[str, ...]:
    """Return the reasons why a Raspberry Pi has been throttled since boot. On other machines, the result is empty."""
    bits = _pi_bits()
    return tuple(reason for bit, reason in _PI_BITS.items() if (bits or 0) >> (bit + 16) & 1)


def _pi_throttled() -> tuple[str, ...] | None:
    bits = _pi_bits()
    return None if bits is None else tuple(reason for bit, reason in _PI_BITS.items() if bits >> bit & 1)


def _pi_bits() -> int | None:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        return int(run_program([tool, "get_throttled"], timeout_s=2).stdout.strip().partition("=")[2], 16)
    except ValueError:
        return None
