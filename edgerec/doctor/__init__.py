"""Check whether this machine can run cameras and training, and suggest commands that fix the problems."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerec.contract.target import Target, target_names
from edgerec.doctor import (
    cameras,
    edgetpu,
    gpu,
    model_requirements,
    opencv,
    packages,
    python,
    resources,
    runtimes,
    system,
    training,
)
from edgerec.doctor.cameras import Cameras
from edgerec.doctor.edgetpu import EdgeTpu
from edgerec.doctor.finding import DoctorReport, Finding, State, note
from edgerec.doctor.gpu import Gpu
from edgerec.doctor.opencv import OpenCV
from edgerec.doctor.packages import Packages
from edgerec.doctor.python import Python
from edgerec.doctor.resources import Resources
from edgerec.doctor.runtimes import Runtime
from edgerec.doctor.system import System
from edgerec.runtime.video_devices import ROOT

if TYPE_CHECKING:
    from edgerec.contract.manifest import Manifest

__all__ = ["DoctorReport", "Facts", "Finding", "State", "examine", "gather", "run_doctor"]


@dataclass(frozen=True)
class Facts:
    """Facts about a machine. The defaults describe a machine without problems."""

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
    """Check this machine. TensorFlow is not imported, and code that may crash or hang runs in child processes.

    Args:
        target: target that the machine is compared with: a name in ``targets/``, or a .toml file.
        bundle: bundle whose target the machine is compared with.
        root: folder that contains ``sys``, ``proc`` and ``dev`` of the cameras, the Edge TPU and the board, e.g. a
            copy from another machine.

    Raises:
        TargetError: the target does not exist or is not valid.
        BundleError: the bundle does not exist or is not valid.
    """
    opened = _manifest(bundle) if bundle else None
    name = target or (opened.target if opened else "")
    # If the target of a bundle is a user's own file, the bundle contains only the stem of the file's name.
    loaded_target = Target.load(name) if target or name in target_names() else None
    report = examine(gather(root), loaded_target, delegate=opened.delegate if opened else None)
    if opened and loaded_target is None:
        detail = "not compared with this machine, because edgerec has no target with this name: give the target's file"
        unknown = note(f"target {name}", detail, "edgerec doctor --target FILE.toml")
        report = DoctorReport((*report.findings, unknown))
    return report


def _manifest(bundle: str | Path) -> Manifest:
    from edgerec.contract.bundle import Bundle  # not imported above, because it needs NumPy, which may be missing

    return Bundle.open(bundle).manifest


def gather(root: str | Path = ROOT) -> Facts:
    """Collect the facts about this machine in parallel, each within a time limit.

    Args:
        root: as for :func:`run_doctor`.
    """
    root = Path(root)
    with ThreadPoolExecutor(max_workers=8) as pool:
        functions = (
            *(packages.collect, opencv.collect, runtimes.collect),
            *(partial(cameras.collect, root), partial(edgetpu.collect, root)),
            *(gpu.collect, resources.collect),
        )
        futures: list[Future[Any]] = [pool.submit(function) for function in functions]
        system_facts, python_facts = system.collect(root), python.collect()
        package_facts, opencv_facts, runtime_facts, camera_facts, edgetpu_facts, gpu_facts, resource_facts = (
            future.result() for future in futures
        )
    return Facts(
        system=system_facts,
        python=python_facts,
        packages=package_facts,
        runtimes=runtime_facts,
        opencv=opencv_facts,
        cameras=camera_facts,
        edgetpu=edgetpu_facts,
        gpu=gpu_facts,
        resources=resource_facts,
        tensorflow_gpus=training.count_gpus(package_facts, bool(gpu_facts.nvidia)),
    )


def examine(facts: Facts, target: Target | None = None, *, delegate: str | None = None) -> DoctorReport:
    """Return the findings that follow from the facts about a machine.

    Args:
        facts: facts about the machine.
        target: target that the machine is compared with; None for no target.
        delegate: delegate of the bundle, which replaces the delegate of the target; None uses the target's delegate.
    """
    here = facts.system
    can_train = "tensorflow" in facts.packages
    result = [
        *system.findings(here),
        *python.findings(facts.python, here),
        *packages.findings(facts.packages),
        *runtimes.findings(facts.runtimes, here, facts.python),
        *opencv.findings(facts.opencv, facts.packages, here),
        *cameras.findings(facts.cameras, here),
        *edgetpu.findings(facts.edgetpu, here, facts.runtimes),
        *gpu.findings(facts.gpu, here),
        *training.findings(facts.packages, here, facts.tensorflow_gpus),
        *resources.findings(facts.resources, here, can_train),
    ]
    if target is not None:
        delegate = target.delegate if delegate is None else delegate
        result += model_requirements.findings(
            target, here, facts.python, facts.runtimes, facts.resources, facts.edgetpu, delegate
        )
    return DoctorReport(tuple(result))
