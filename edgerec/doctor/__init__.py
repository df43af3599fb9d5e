"""Check whether this machine can run edgerec, and suggest commands that fix any problems.

Each ``check_NAME`` module collects information about one part of the machine (``collect``) and compares it with
edgerec's requirements (``check``).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.contract.target import Target, target_names
from edgerec.doctor import (
    check_cameras,
    check_edgetpu,
    check_gpu,
    check_opencv,
    check_packages,
    check_python,
    check_resources,
    check_runtimes,
    check_system,
    check_target,
    check_training,
)
from edgerec.doctor.check_cameras import Cameras
from edgerec.doctor.check_edgetpu import EdgeTpu
from edgerec.doctor.check_gpu import Gpu
from edgerec.doctor.check_opencv import OpenCV
from edgerec.doctor.check_packages import Packages
from edgerec.doctor.check_python import Python
from edgerec.doctor.check_resources import Resources
from edgerec.doctor.check_result import CheckResult, CheckState, DoctorReport, note
from edgerec.doctor.check_runtimes import Runtime
from edgerec.doctor.check_system import System
from edgerec.runtime.video_devices import ROOT

if TYPE_CHECKING:
    from edgerec.contract.manifest import Manifest

__all__ = ["CheckResult", "CheckState", "DoctorReport", "Machine", "check_machine", "inspect_machine", "run_doctor"]


@dataclass(frozen=True)
class Machine:
    """Information about a machine. The defaults describe a machine without problems."""

    system: System = field(default_factory=System)
    python: Python = field(default_factory=Python)
    packages: Packages = field(default_factory=Packages)
    runtimes: tuple[Runtime, ...] = ()
    opencv: OpenCV = field(default_factory=OpenCV)
    cameras: Cameras = field(default_factory=Cameras)
    edgetpu: EdgeTpu = field(default_factory=EdgeTpu)
    gpu: Gpu = field(default_factory=Gpu)
    resources: Resources = field(default_factory=Resources)
    tensorflow_gpus: int | None = None


def run_doctor(target: str = "", bundle: str | Path = "", *, root: str | Path = ROOT) -> DoctorReport:
    """Check whether this machine meets the requirements of edgerec and, optionally, of a target.

    Code that may crash or hang, such as importing TensorFlow, runs in child processes.

    Args:
        target: target whose requirements are also checked: a name in ``targets/``, or a .toml file.
        bundle: path of a bundle whose target's requirements are also checked.
        root: folder that contains ``sys``, ``proc`` and ``dev``, e.g. a copy from another machine.

    Raises:
        TargetError: the target does not exist or is not valid.
        BundleError: the bundle does not exist or is not valid.
    """
    manifest = _manifest(bundle) if bundle else None
    name = target or (manifest.target if manifest else "")
    # A bundle contains only the name of a user-defined target, not the .toml file.
    loaded_target = Target.load(name) if target or name in target_names() else None
    report = check_machine(inspect_machine(root), loaded_target, delegate=manifest.delegate if manifest else None)
    if manifest and loaded_target is None:
        detail = "not checked, because edgerec does not include a target with this name: pass the target's .toml file"
        unknown = note(f"target {name}", detail, "edgerec doctor --target FILE.toml")
        report = DoctorReport((*report.results, unknown))
    return report


def _manifest(bundle: str | Path) -> Manifest:
    # This import requires NumPy, which may be missing when edgerec doctor runs.
    from edgerec.contract.bundle import Bundle

    return Bundle.open(bundle).manifest


def inspect_machine(root: str | Path = ROOT) -> Machine:
    """Collect information about this machine in parallel, with time limits.

    Args:
        root: folder that contains ``sys``, ``proc`` and ``dev``, e.g. a copy from another machine.
    """
    root = Path(root)
    with ThreadPoolExecutor(max_workers=8) as pool:
        packages = pool.submit(check_packages.collect)
        opencv = pool.submit(check_opencv.collect)
        runtimes = pool.submit(check_runtimes.collect)
        cameras = pool.submit(partial(check_cameras.collect, root))
        edgetpu = pool.submit(partial(check_edgetpu.collect, root))
        gpu = pool.submit(check_gpu.collect)
        resources = pool.submit(check_resources.collect)
        return Machine(
            system=check_system.collect(root),
            python=check_python.collect(),
            packages=packages.result(),
            runtimes=runtimes.result(),
            opencv=opencv.result(),
            cameras=cameras.result(),
            edgetpu=edgetpu.result(),
            gpu=gpu.result(),
            resources=resources.result(),
            tensorflow_gpus=check_training.count_gpus(packages.result(), bool(gpu.result().nvidia)),
        )


def check_machine(machine: Machine, target: Target | None = None, *, delegate: str | None = None) -> DoctorReport:
    """Check a machine against the requirements of edgerec and, optionally, of a target.

    Args:
        machine: information about the machine.
        target: target whose requirements are also checked.
        delegate: the bundle's delegate. If None, the target's delegate is used.
    """
    system, can_train = machine.system, "tensorflow" in machine.packages
    results = [
        *check_system.check(system),
        *check_python.check(machine.python, system),
        *check_packages.check(machine.packages),
        *check_runtimes.check(machine.runtimes, system, machine.python),
        *check_opencv.check(machine.opencv, machine.packages, system),
        *check_cameras.check(machine.cameras, system),
        *check_edgetpu.check(machine.edgetpu, system, machine.runtimes),
        *check_gpu.check(machine.gpu, system),
        *check_training.check(machine.packages, system, machine.tensorflow_gpus),
        *check_resources.check(machine.resources, system, can_train),
    ]
    if target is not None:
        delegate = target.delegate if delegate is None else delegate
        results += check_target.check(
            target, system, machine.python, machine.runtimes, machine.resources, machine.edgetpu, delegate
        )
    return DoctorReport(tuple(results))
