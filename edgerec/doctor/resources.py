"""Memory, disk and heat."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.system import System
from edgerec.runtime.thermal import earlier_throttled, processor_temperature_c, read_health
from edgerec.utils.atomic import cache_folder

MIB = 2**20
# What runtime, OpenCV and a small model take, resident; and TensorFlow with one in training.
_CAMERA_BYTES, _TRAINING_BYTES = 100 * MIB, 3 * 1024 * MIB
_FULL_BYTES, _TIGHT_BYTES = 100 * MIB, 1024 * MIB
_HOT_C = 80.0
_ELSEWHERE = {
    "cache": 'export EDGEREC_CACHE="$HOME/.cache/edgerec"',
    "current folder": 'cd "$HOME"',
    "temporary files": "export TMPDIR=/var/tmp",
}


@dataclass(frozen=True)
class Place:
    """A folder that edgerec writes to.

    Attributes:
        what: what it is.
        path: where.
        free_bytes: on its disk, for us.
        writable: whether we may.
    """

    what: str
    path: str
    free_bytes: int = 10 * 1024 * MIB
    writable: bool = True


@dataclass(frozen=True)
class Resources:
    """How the machine stands. 0 and None: it does not tell.

    Attributes:
        memory_bytes: of the machine, or of the container.
        available_bytes: that programs can still have.
        places: folders that are written to.
        temperature_c: of the processor.
        throttled, earlier: what a Raspberry Pi says holds it back, or did.
    """

    memory_bytes: int = 4 * 1024 * MIB
    available_bytes: int = 2 * 1024 * MIB
    places: tuple[Place, ...] = ()
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


def look() -> Resources:
    """Those of this machine."""
    total, available = _memory()
    health = read_health()
    return Resources(
        total,
        available,
        (_place("cache", cache_folder), _place("current folder", Path.cwd), _place("temporary files", _temporary)),
        processor_temperature_c(),
        health.throttled or (),
        earlier_throttled() if health.throttled is not None else (),
    )


def findings(resources: Resources, system: System, training: bool) -> list[Finding]:
    """Memory, each place, heat and power. ``training``: whether this machine is meant for it."""
    return [*_of_memory(resources, training), *_of_places(resources, system, training), *_of_heat(resources)]


def _of_memory(resources: Resources, training: bool) -> list[Finding]:
    total, available = resources.memory_bytes, resources.available_bytes
    if not total:
        return []
    what = f"{total / MIB:,.0f} MiB, {available / MIB:,.0f} free"
    if available < _CAMERA_BYTES:
        return [
            problem("memory", f"{what}: too little for a camera", "ps aux --sort=-rss | head   # end what is large")
        ]
    if training and available < _TRAINING_BYTES:
        return [note("memory", f"{what}: training wants 3 GiB", "edgerec train --batch-size 16 …")]
    return [ok("memory", what)]


def _of_places(resources: Resources, system: System, training: bool) -> list[Finding]:
    found = []
    for place in resources.places:
        where = f"{place.what} {place.path}"
        if not place.writable:
            state = note if place.what == "current folder" else problem
            found.append(state("disk", f"{where} cannot be written", _ELSEWHERE[place.what]))
        elif place.free_bytes < _FULL_BYTES:
            mend = "pip cache purge" + (f"; {system.sudo}apt clean" if system.os == "Linux" else "")
            found.append(problem("disk", f"{where} is full: {place.free_bytes / MIB:,.0f} MiB left", mend))
        elif place.free_bytes < _TIGHT_BYTES and training:
            found.append(note("disk", f"{where} has {place.free_bytes / MIB:,.0f} MiB left", "pip cache purge"))
    if not found and resources.places:
        least = min(place.free_bytes for place in resources.places)
        found.append(ok("disk", f"{least / 1024 / MIB:,.1f} GiB free or more where edgerec writes"))
    return found


def _of_heat(resources: Resources) -> list[Finding]:
    found, degrees = [], resources.temperature_c
    for reason in resources.throttled:
        found.append(problem("power" if reason == "under-voltage" else "heat", f"right now: {reason}", _cure(reason)))
    if earlier := [reason for reason in resources.earlier if reason not in resources.throttled]:
        found.append(note("power", f"since it was started: {', '.join(earlier)}", _cure(earlier[0])))
    if degrees is not None and degrees >= _HOT_C and not resources.throttled:
        found.append(note("heat", f"{degrees:.0f} degrees Celsius: it will slow down; give it a fan or a heat sink"))
    if not found and degrees is not None:
        found.append(ok("heat", f"{degrees:.0f} degrees Celsius"))
    return found


def _cure(reason: str) -> str:
    if reason == "under-voltage":
        return "vcgencmd get_throttled   # 0x0 with the official power supply and a short cable"
    return "vcgencmd measure_temp   # below 80 with a fan or a heat sink"


def _memory() -> tuple[int, int]:
    values = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, rest = line.partition(":")
            values[key] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0, 0
    total, available = values.get("MemTotal", 0), values.get("MemAvailable", 0)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # none, or "max"
        return total, available
    return min(total, limit), min(available, max(0, limit - used))


def _place(what: str, find: Callable[[], Path]) -> Place:
    try:
        path = there = find()
    except (OSError, RuntimeError) as error:  # a folder that was removed, a user without a home
        return Place(what, f"({error})", 0, False)
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = 0
    return Place(what, str(path), free, there.is_dir() and os.access(there, os.W_OK | os.X_OK))


def _temporary() -> Path:
    return Path(tempfile.gettempdir())
