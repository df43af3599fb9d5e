"""Check memory, disk space, temperature and power supply."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_system import System
from edgerec.runtime.thermal import earlier_throttled, processor_temperature_c, read_health
from edgerec.utils.atomic import cache_folder

MIB = 2**20
# Memory in bytes required for a camera with a small model, and for training a small model with TensorFlow.
_CAMERA_BYTES, _TRAINING_BYTES = 100 * MIB, 3 * 1024 * MIB
# A disk with less free space than this number of bytes is reported as full.
_FULL_BYTES = 100 * MIB
# Free disk space in bytes that is recommended for training.
_LOW_BYTES = 1024 * MIB
_HOT_C = 80.0
# Shell commands that select another folder, keyed by the purpose of the folder.
_OTHER_FOLDER = {
    "cache": 'export EDGEREC_CACHE="$HOME/.cache/edgerec"',
    "current folder": 'cd "$HOME"',
    "temporary files": "export TMPDIR=/var/tmp",
}


@dataclass(frozen=True)
class Folder:
    """A folder that edgerec must be able to write to.

    Attributes:
        what: purpose of the folder, a key of ``_OTHER_FOLDER``.
        path: path of the folder.
        free_bytes: disk space available to this user.
        writable: whether this user has permission to write to the folder.
    """

    what: str
    path: str
    free_bytes: int = 10 * 1024 * MIB
    writable: bool = True


@dataclass(frozen=True)
class Resources:
    """A machine's memory, disk space, temperature and power supply.

    Attributes:
        memory_bytes: total memory of the machine or container; 0 if unknown.
        available_bytes: memory available to programs; 0 if unknown.
        folders: folders that edgerec must be able to write to.
        temperature_c: CPU temperature in degrees Celsius, or None if unknown.
        throttled: reasons why a Raspberry Pi is currently throttled.
        earlier: reasons why a Raspberry Pi was throttled at any time since boot.
    """

    memory_bytes: int = 4 * 1024 * MIB
    available_bytes: int = 2 * 1024 * MIB
    folders: tuple[Folder, ...] = ()
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


def collect() -> Resources:
    """Return this machine's memory, disk space, temperature and power supply state."""
    total, available = _memory()
    health = read_health()
    return Resources(
        total,
        available,
        (
            folder_state("cache", cache_folder),
            folder_state("current folder", Path.cwd),
            folder_state("temporary files", _temporary),
        ),
        processor_temperature_c(),
        health.throttled or (),
        earlier_throttled() if health.throttled is not None else (),
    )


def check(resources: Resources, system: System, training: bool) -> list[CheckResult]:
    """Check memory, disk space, temperature and power supply.

    Args:
        resources: the machine's resources.
        system: the operating system.
        training: whether the machine is also used for training, which requires more memory and disk space.
    """
    return [
        *_check_memory(resources, training),
        *_check_disks(resources, system, training),
        *_check_heat_and_power(resources),
    ]


def _check_memory(resources: Resources, training: bool) -> list[CheckResult]:
    total, available = resources.memory_bytes, resources.available_bytes
    if not total:
        return []
    text = f"{total / MIB:,.0f} MiB, of which {available / MIB:,.0f} MiB are available"
    if available < _CAMERA_BYTES:
        fix = "ps aux --sort=-rss | head   # stop the largest processes"
        return [problem("memory", f"{text}, which is not enough for edgerec camera", fix)]
    if training and available < _TRAINING_BYTES:
        return [note("memory", f"{text}, but training requires about 3 GiB", "edgerec train --batch-size 16 …")]
    return [ok("memory", text)]


def _check_disks(resources: Resources, system: System, training: bool) -> list[CheckResult]:
    result = []
    for folder in resources.folders:
        where = f"{folder.what} {folder.path}"
        if not folder.writable:
            report = note if folder.what == "current folder" else problem
            result.append(report("disk", f"no permission to write to the {where}", _OTHER_FOLDER[folder.what]))
        elif folder.free_bytes < _FULL_BYTES:
            fix = "pip cache purge" + (f"; {system.sudo}apt clean" if system.os == "Linux" else "")
            result.append(problem("disk", f"{where}: disk full, only {folder.free_bytes / MIB:,.0f} MiB free", fix))
        elif folder.free_bytes < _LOW_BYTES and training:
            result.append(note("disk", f"{where}: only {folder.free_bytes / MIB:,.0f} MiB free", "pip cache purge"))
    if not result and resources.folders:
        least = min(folder.free_bytes for folder in resources.folders)
        result.append(ok("disk", f"at least {least / 1024 / MIB:,.1f} GiB free in each folder used by edgerec"))
    return result


def _check_heat_and_power(resources: Resources) -> list[CheckResult]:
    result, degrees = [], resources.temperature_c
    for reason in resources.throttled:
        what = "power" if reason == "under-voltage" else "heat"
        result.append(problem(what, f"the Raspberry Pi currently reports: {reason}", _check_command(reason)))
    if earlier := [reason for reason in resources.earlier if reason not in resources.throttled]:
        detail = f"the Raspberry Pi has reported since boot: {', '.join(earlier)}"
        result.append(note("power", detail, _check_command(earlier[0])))
    if degrees is not None and degrees >= _HOT_C and not resources.throttled:
        detail = f"{degrees:.0f} degrees Celsius: add a fan or a heat sink, because the CPU will soon be throttled"
        result.append(note("heat", detail))
    if not result and degrees is not None:
        result.append(ok("heat", f"{degrees:.0f} degrees Celsius"))
    return result


def _check_command(reason: str) -> str:
    if reason == "under-voltage":
        return "vcgencmd get_throttled   # should be 0x0 with the official power supply and a short cable"
    return "vcgencmd measure_temp   # should be below 80 with a fan or a heat sink"


def _memory() -> tuple[int, int]:
    """Return the total and available memory of the machine or container in bytes, or zeros if it is unknown."""
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
    except (OSError, ValueError):  # Memory is unlimited if the file is missing or contains "max".
        return total, available
    return min(total, limit), min(available, max(0, limit - used))


def folder_state(what: str, find: Callable[[], Path]) -> Folder:
    """Return a folder's free space and whether it is writable.

    Args:
        what: purpose of the folder.
        find: function that returns the folder's path. The folder does not have to exist.
    """
    try:
        path = find()
    except (OSError, RuntimeError) as error:  # The folder was deleted, or the user has no home folder.
        return Folder(what, f"({error})", 0, False)
    # A missing folder will be created in its nearest existing parent folder.
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        free_bytes = shutil.disk_usage(existing).free
    except OSError:
        free_bytes = 0
    return Folder(what, str(path), free_bytes, existing.is_dir() and os.access(existing, os.W_OK | os.X_OK))


def _temporary() -> Path:
    return Path(tempfile.gettempdir())
