"""What stands between this machine and a running camera, or training, and the commands that mend it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerec.contract.target import Target, target_names
from edgerec.doctor import cameras, edgetpu, gpu, opencv, packages, python, resources, runtimes, system, training
from edgerec.doctor import model_requirements as fit
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
    """All that is known of a machine; what is left out is as on a machine where all is well."""

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
    # A bundle names a person's own target file by its stem alone.
    aim = Target.load(name) if target or name in target_names() else None
    report = examine(gather(root), aim, delegate=opened.delegate if opened else None)
    if opened and aim is None:
        unknown = note(f"target {name}", "not one of edgerec's own: name its file", "edgerec doctor --target FILE.toml")
        report = DoctorReport((*report.findings, unknown))
    return report


def _manifest(bundle: str | Path) -> Manifest:
    from edgerec.contract.bundle import Bundle  # it wants NumPy, which may be what is ill

    return Bundle.open(bundle).manifest


def gather(root: str | Path = ROOT) -> Facts:
    """Collect the facts about this machine in parallel, with a time limit for each; ``root`` as for :func:`doctor`."""
    root = Path(root)
    with ThreadPoolExecutor(max_workers=8) as pool:
        looks = (
            *(packages.look, opencv.look, runtimes.look),
            *(partial(cameras.look, root), partial(edgetpu.look, root)),
            *(gpu.look, resources.look),
        )
        asked: list[Future[Any]] = [pool.submit(look) for look in looks]
        here, interpreter = system.look(root), python.look()
        installed, vision, interpreters, seen, tpu, gpus, standing = (future.result() for future in asked)
    return Facts(
        system=here,
        python=interpreter,
        packages=installed,
        runtimes=interpreters,
        opencv=vision,
        cameras=seen,
        edgetpu=tpu,
        gpu=gpus,
        resources=standing,
        tensorflow_gpus=training.look(installed, bool(gpus.nvidia)),
    )


def examine(facts: Facts, target: Target | None = None, *, delegate: str | None = None) -> DoctorReport:
    """What the facts mean, and for the target.

    Args:
        facts: of a machine.
        target: None asks for nothing particular.
        delegate: what the bundle runs on, where that is not what the target says.
    """
    here = facts.system
    trains = "tensorflow" in facts.packages
    found = [
        *system.findings(here),
        *python.findings(facts.python, here),
        *packages.findings(facts.packages),
        *runtimes.findings(facts.runtimes, here, facts.python),
        *opencv.findings(facts.opencv, facts.packages, here),
        *cameras.findings(facts.cameras, here),
        *edgetpu.findings(facts.edgetpu, here, facts.runtimes),
        *gpu.findings(facts.gpu, here),
        *training.findings(facts.packages, here, facts.tensorflow_gpus),
        *resources.findings(facts.resources, here, trains),
    ]
    if target is not None:
        runs_on = target.delegate if delegate is None else delegate
        found += fit.findings(target, here, facts.python, facts.runtimes, facts.resources, facts.edgetpu, runs_on)
    return DoctorReport(tuple(found))
