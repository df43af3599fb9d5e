"""The GPU, for ``--delegate gpu`` and for training."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.system import System
from edgerec.utils.child_process import run_program

_DRIVERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d")


@dataclass(frozen=True)
class Gpu:
    """What there is.

    Attributes:
        nvidia: names that nvidia-smi gives.
        reason: why nvidia-smi failed.
        nodes: device files that draw and compute.
        closed: those of them that we may not open.
        vulkan: whether its loader and a driver are installed.
    """

    nvidia: tuple[str, ...] = ()
    reason: str = ""
    nodes: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    vulkan: bool = True


def look() -> Gpu:
    """This machine's."""
    tool = shutil.which("nvidia-smi")
    done = run_program([tool, "--query-gpu=name", "--format=csv,noheader"], timeout_s=10) if tool else None
    nodes = [str(path) for path in sorted(Path("/dev/dri").glob("renderD*"))]
    return Gpu(
        nvidia=tuple(done.stdout.strip().splitlines()) if done and not done.reason else (),
        reason=done.reason if done else "",
        nodes=tuple(nodes),
        closed=tuple(path for path in nodes if not os.access(path, os.R_OK | os.W_OK)),
        vulkan=not nodes or _has_vulkan(),
    )


def findings(gpu: Gpu, system: System) -> list[Finding]:
    """NVIDIA's, our rights, Vulkan."""
    found = []
    if gpu.nvidia:
        found.append(ok("GPU", ", ".join(gpu.nvidia)))
    if gpu.reason:
        found.append(problem("GPU", f"nvidia-smi failed: {gpu.reason}", f"{system.sudo}modprobe nvidia   # or reboot"))
    if gpu.closed:
        found.append(note("GPU", f"{', '.join(gpu.closed)} is closed to you", system.join("render")))
    elif gpu.nodes and not gpu.vulkan:
        mend = f"{system.sudo}apt install libvulkan1 mesa-vulkan-drivers"
        found.append(note("GPU", "--delegate gpu wants Vulkan, which is not installed", mend))
    elif gpu.nodes and not found:
        found.append(ok("GPU", f"{', '.join(gpu.nodes)} with Vulkan: --delegate gpu may work"))
    return found or [ok("GPU", "none that is told of: models run on the processor")]


def _has_vulkan() -> bool:
    drivers = any(True for folder in _DRIVERS for _ in Path(folder).glob("*.json"))
    return drivers and ctypes.util.find_library("vulkan") is not None
