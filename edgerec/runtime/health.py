"""What the machine says of its own state: temperature, clock, throttling, memory."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ZONES = Path("/sys/class/thermal")
_CLOCKS = Path("/sys/devices/system/cpu")
# Bits of `vcgencmd get_throttled`, as the Raspberry Pi's documentation names them.
_PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


@dataclass(frozen=True)
class Health:
    """One look at the machine; None where it does not tell.

    Attributes:
        temperature_c: of the hottest sensor, degrees Celsius.
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
    hottest = [milli / 1000 for milli in _numbers(_ZONES, "thermal_zone*/temp") if -50_000 < milli < 200_000]
    clocks = [kilo / 1000 for kilo in _numbers(_CLOCKS, "cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return Health(
        temperature_c=max(hottest, default=None),
        clock_mhz=sum(clocks) / len(clocks) if clocks else None,
        throttled=_pi_throttled(),
    )


def _numbers(folder: Path, pattern: str) -> list[float]:
    found = []
    for path in sorted(folder.glob(pattern)):
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):  # some sensors answer with an error
            continue
    return found


def _pi_throttled() -> tuple[str, ...] | None:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        said = subprocess.run([tool, "get_throttled"], capture_output=True, text=True, timeout=2, check=True).stdout
        bits = int(said.strip().partition("=")[2], 16)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return tuple(word for bit, word in _PI_BITS.items() if bits >> bit & 1)
