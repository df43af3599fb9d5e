"""The processor's temperature, where Linux knows it."""

from __future__ import annotations

from pathlib import Path

# Kinds of thermal zones that are the processor, most particular first.
_KINDS = ("x86_pkg_temp", "cpu", "soc", "package", "acpitz")


def processor_temperature_c(zones: Path = Path("/sys/class/thermal")) -> float | None:
    """Degrees Celsius from the kernel's thermal zones (Documentation/driver-api/thermal/sysfs-api); None if unknown."""
    found = []
    for zone in sorted(zones.glob("thermal_zone*")):
        try:
            kind = (zone / "type").read_text().strip().lower()
            degrees = int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
        rank = next((rank for rank, known in enumerate(_KINDS) if known in kind), None)
        if rank is not None and -40 < degrees < 150:
            found.append((rank, -degrees))
    return -min(found)[1] if found else None
