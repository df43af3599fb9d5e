"""Check the GPU, which can be used for training and inference."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_system import System
from edgerec.utils.child_process import run_program

_VULKAN_DRIVER_FOLDERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d")


@dataclass(frozen=True)
class Gpu:
    """A machine's GPUs.

    Attributes:
        nvidia: names of the NVIDIA GPUs, as reported by nvidia-smi.
        reason: error if nvidia-smi failed; empty if it succeeded or is not installed.
        nodes: the GPUs' device files (DRM render nodes).
        denied: ``nodes`` that this user does not have permission to open.
        vulkan: whether the Vulkan loader and a Vulkan driver are installed; True if there are no ``nodes``.
    """

    nvidia: tuple[str, ...] = ()
    reason: str = ""
    nodes: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    vulkan: bool = True


def collect() -> Gpu:
    """Return this machine's GPUs."""
    tool = shutil.which("nvidia-smi")
    result = run_program([tool, "--query-gpu=name", "--format=csv,noheader"], timeout_s=10) if tool else None
    nodes = [str(path) for path in sorted(Path("/dev/dri").glob("renderD*"))]
    return Gpu(
        nvidia=tuple(result.stdout.strip().splitlines()) if result and not result.reason else (),
        reason=result.reason if result else "",
        nodes=tuple(nodes),
        denied=tuple(path for path in nodes if not os.access(path, os.R_OK | os.W_OK)),
        vulkan=not nodes or _has_vulkan(),
    )


def check(gpu: Gpu, system: System) -> list[CheckResult]:
    """Check the GPU drivers, device permissions and Vulkan."""
    result = []
    if gpu.nvidia:
        result.append(ok("GPU", ", ".join(gpu.nvidia)))
    if gpu.reason:
        result.append(problem("GPU", f"nvidia-smi failed: {gpu.reason}", f"{system.sudo}modprobe nvidia   # or reboot"))
    if gpu.denied:
        detail = f"permission denied for {', '.join(gpu.denied)}, which is only accessible to the group render"
        result.append(note("GPU", detail, system.join("render")))
    elif gpu.nodes and not gpu.vulkan:
        fix = f"{system.sudo}apt install libvulkan1 mesa-vulkan-drivers"
        result.append(note("GPU", "--delegate gpu requires Vulkan, which is not installed", fix))
    elif gpu.nodes and not result:
        result.append(ok("GPU", f"{', '.join(gpu.nodes)} with Vulkan: --delegate gpu may work"))
    return result or [ok("GPU", "no GPU found, so models run on the CPU")]


def _has_vulkan() -> bool:
    drivers = any(True for folder in _VULKAN_DRIVER_FOLDERS for _ in Path(folder).glob("*.json"))
    return drivers and ctypes.util.find_library("vulkan") is not None
