"""Verify a bundle in an emulated system for each of a target's Debian releases and CPUs."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.emulation import probe
from edgerec.emulation.device_wheels import check_requirements
from edgerec.emulation.emulated_system import EmulatedSystem, WorkFolder, emulated_systems
from edgerec.emulation.image_selection import select_images
from edgerec.emulation.score_comparison import ImageResult, ImageResults, ScoreComparison, compare
from edgerec.errors import BundleError
from edgerec.export.readme import requirements as target_requirements
from edgerec.export.wheel import FOLDER
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.interpreter import Fingerprint, fingerprint
from edgerec.runtime.verification import read_golden, tolerance
from edgerec.tflite.runtime_packages import RUNTIMES
from edgerec.utils.atomic import sha256
from edgerec.utils.child_process import Outcome
from edgerec.utils.progress import Listener, ignore

LOADERS = {"arm64": "/lib/ld-linux-aarch64.so.1", "armhf": "/lib/ld-linux-armhf.so.3"}
# The commands edgerec predict, verify and camera import these modules on a device.
_MODULES = (
    "numpy", "cv2", "edgerec.cli.app", "edgerec.cli.camera", "edgerec.cli.predict", "edgerec.cli.verify",
    "edgerec.runtime.verification", "edgerec.runtime.benchmark", "edgerec.camera",
    "edgerec.camera.sources.opencv_capture", "edgerec.camera.sources.files", "edgerec.camera.sinks",
)  # fmt: skip


@dataclass(frozen=True)
class EmulationResult:
    """Result of verifying a bundle in one emulated system.

    Attributes:
        release: Debian release codename.
        python: Python version in this release.
        machine: ``aarch64`` or ``armv7l``.
        cpu: QEMU's name for the CPU.
        runtime, version: name and version of the TFLite runtime; empty if it was not loaded.
        edgerec: version of edgerec in the emulated system; empty if it was not loaded.
        golden: comparison with the bundle's golden vectors, or None if the model was not run.
        images: comparison with this machine's scores for other images, or None if there are none.
        import_errors: modules that cannot be imported, with the errors.
        missing_libraries: names of missing shared libraries.
        problem: the first problem; empty if there is none.
        site_bytes: size of the installed packages.
        seconds: duration of the emulated run. It says nothing about the speed of a real device.
    """

    release: str
    python: str
    machine: str
    cpu: str
    runtime: str = ""
    version: str = ""
    edgerec: str = ""
    golden: ScoreComparison | None = None
    images: ScoreComparison | None = None
    import_errors: tuple[str, ...] = ()
    missing_libraries: tuple[str, ...] = ()
    problem: str = ""
    site_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class EmulationReport:
    """Results of verifying a bundle in one or more emulated systems.

    Attributes:
        bundle: path of the bundle.
        on: name of the target.
        made_on: the machine that exported the bundle.
        here: this machine.
        results: one result per Debian release and CPU.
        seconds: total duration, including installation of the emulated systems.
    """

    bundle: str
    on: str
    made_on: Fingerprint
    here: Fingerprint
    results: tuple[EmulationResult, ...]
    seconds: float

    @property
    def problem(self) -> str:
        """Return the first problem found, with its Debian release and CPU, or an empty string if there is none."""
        return next((f"Debian {r.release}, {r.cpu}: {r.problem}" for r in self.results if r.problem), "")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return {"ok": not self.problem} | asdict(self)


@dataclass(frozen=True)
class Expectation:
    """A bundle's inputs and expected results, which are the same for all emulated systems.

    Attributes:
        bundle: the bundle.
        requirements: contents of the requirements.txt to install.
        modules: modules to import.
        golden: expected results for the golden images.
        made_on: the machine that computed the golden vectors.
        images: contents of all image files, keyed by file name.
        here: this machine's results for the other images.
        fingerprint: this machine.
    """

    bundle: Bundle
    requirements: str
    modules: tuple[str, ...]
    golden: ImageResults
    made_on: Fingerprint
    images: Mapping[str, bytes]
    here: ImageResults
    fingerprint: Fingerprint

    @classmethod
    def of(cls, bundle: Bundle, target: Target, data: str | Path | None = None, images: int = 0) -> Expectation:
        """Load the bundle's expected results, and compute this machine's results for other images.

        Raises:
            BundleError: the golden vectors are damaged, or requirements.txt contains a line that is not allowed.
            DataError: ``data`` contains no images.
        """
        requirements = _requirements(bundle, target)
        made_on, vectors = read_golden(bundle)
        # Golden images are renamed because they share a folder with other images in the emulated system.
        named_vectors = {f"golden-{number:03d}.png": vector for number, vector in enumerate(vectors)}
        others = select_images(str(data), images) if data is not None else {}
        classifier = Classifier(bundle, delegate="")
        runtime = [module for package, module in RUNTIMES.items() if package in requirements]
        return cls(
            bundle=bundle,
            requirements=requirements,
            modules=(*runtime, *_MODULES),
            golden={
                name: ImageResult(pixels=vector["pixels_sha256"], scores=vector["scores"])
                for name, vector in named_vectors.items()
            },
            made_on=made_on,
            images={name: bundle.files[vector["image"]] for name, vector in named_vectors.items()} | others,
            here={name: probe.pixels_and_scores(classifier, content) for name, content in others.items()},
            fingerprint=fingerprint(),
        )


def verify_emulated(
    bundle: str | Path,
    on: str = "rpi",
    *,
    data: str | Path | None = None,
    images: int = 300,
    releases: Sequence[str] = (),
    cpus: Sequence[str] = (),
    find_links: str = "",
    allowed_signers: str | Path | None = None,
    revoked_keys: str | Path | None = None,
    listener: Listener = ignore,
) -> EmulationReport:
    """Verify a bundle in emulated systems for a target.

    For each of the target's Debian releases, a root file system with the bundle's requirements is installed in
    ``cache_folder()``. The golden vectors are recomputed there under QEMU, once for each CPU, and compared with those
    computed by the machine that exported the bundle.

    Args:
        bundle: path of the bundle folder or .zip file.
        on: a target that runs Debian on ARM: ``rpi``, ``rpi-32bit``, or a .toml file based on one of them.
        data: other images, in any format that :func:`edgerec.fit` accepts. Their scores in the emulated system are
            compared with those on this machine.
        images: maximum number of other images.
        releases: Debian release codenames; if empty, all releases supported by the target.
        cpus: QEMU's names for the CPUs; if empty, the CPUs of the target's boards.
        find_links: folder or URL with additional wheels, as for pip's ``--find-links``.
        allowed_signers, revoked_keys: files of SSH keys that check the signature on this machine; see
            :meth:`Bundle.open`.
        listener: receives progress updates.

    Raises:
        BundleError: the bundle is damaged.
        TargetError: the target does not run Debian on ARM, or its system cannot be installed on this machine.
    """
    started, target = time.monotonic(), Target.load(on)
    opened = Bundle.open(bundle, allowed_signers=allowed_signers, revoked_keys=revoked_keys)
    expected = Expectation.of(opened, target, data, images)
    systems = emulated_systems(
        target,
        expected.requirements,
        releases=releases,
        cpus=cpus,
        find_links=find_links,
        wheels=_wheels(opened),
        listener=listener,
    )
    results = tuple(_run(expected, system) for system in systems)
    seconds = time.monotonic() - started
    return EmulationReport(str(bundle), target.name, expected.made_on, expected.fingerprint, results, seconds)


def _wheels(bundle: Bundle) -> dict[str, bytes]:
    """Return a bundle's wheels, keyed by path in the bundle.

    Raises:
        BundleError: a wheel was modified. It must not be installed, because its code would run.
    """
    wheels = {name: content for name, content in bundle.files.items() if name.startswith(f"{FOLDER}/")}
    for name, content in wheels.items():
        if sha256(content) != bundle.manifest.files[name]:
            raise BundleError(
                f"{bundle.path}: {name} was not installed because it has been modified since the export: copy or "
                "export the bundle again"
            )
    return wheels


def _requirements(bundle: Bundle, target: Target) -> str:
    """Return the bundle's validated requirements, or the target's if the bundle is for a different target."""
    if bundle.manifest.target != target.name or "requirements.txt" not in bundle.files:
        return target_requirements(target)
    text = bundle.files["requirements.txt"].decode("utf-8", "replace")
    check_requirements(text, target.requirements, f"{bundle.path}/requirements.txt")
    return text


def _run(expected: Expectation, system: EmulatedSystem) -> EmulationResult:
    started, root = time.monotonic(), system.root
    result = EmulationResult(root.release, root.python, system.machine, system.cpu, site_bytes=system.site_bytes)
    with system.work_folder() as work:
        expected.bundle.copy(work.folder / "bundle.zip")
        (work.folder / "images").mkdir()
        for name, content in expected.images.items():
            (work.folder / "images" / name).write_bytes(content)
        job = {"modules": expected.modules, "bundle": f"{work.inside}/bundle.zip", "images": f"{work.inside}/images"}
        done, output = work.run(Path(probe.__file__), job)
        result = with_failure(result, done) if output is None else with_output(result, output, expected)
        if result.missing_libraries:
            result = _with_all_missing_libraries(result, work)
    return replace(result, seconds=round(time.monotonic() - started, 1))


def with_failure(result: EmulationResult, done: Outcome) -> EmulationResult:
    """Return a copy of ``result`` that states why Python failed in the emulated system."""
    how = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
    problem = f"Python exited in the emulated system with {how}: {done.error_line}"
    return replace(result, missing_libraries=_libraries(done.stderr), problem=problem)


def with_output(result: EmulationResult, output: Mapping[str, Any], expected: Expectation) -> EmulationResult:
    """Return a copy of ``result`` with probe.py's output and its comparison with the expected scores."""
    if output["imports"]:
        errors = tuple(f"{module}: {reason}" for module, reason in output["imports"].items())
        return replace(
            result,
            import_errors=errors,
            missing_libraries=_libraries("\n".join(errors)),
            problem=errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""),
        )
    there = Fingerprint(**output["here"])
    result = replace(result, runtime=there.runtime, version=there.version, edgerec=output["edgerec"])
    if "images" not in output:
        return replace(result, problem=output["verify"])
    specs = expected.bundle.manifest.models
    golden, images = (
        compare(results, output["images"], specs, [tolerance(machine, there, spec) for spec in specs])
        for results, machine in ((expected.golden, expected.made_on), (expected.here, expected.fingerprint))
    )
    problem = golden.problem or output["verify"] or images.problem
    return replace(result, golden=golden, images=images if expected.here else None, problem=problem)


_MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")


def _libraries(errors: str) -> tuple[str, ...]:
    """Extract the names of missing shared libraries from the dynamic loader's error messages."""
    return tuple(sorted(set(_MISSING_LIBRARY.findall(errors))))


def _with_all_missing_libraries(result: EmulationResult, work: WorkFolder) -> EmulationResult:
    """List all missing shared libraries, because Python reports only the first one."""
    missing, loader = set(result.missing_libraries), LOADERS[work.root.architecture]
    packages = {line.partition(":")[0].partition(".")[0] for line in result.import_errors}
    folders = [site / package for site in work.packages for package in packages]
    for file in (file for folder in folders for file in folder.rglob("*.so*") if file.is_file()):
        done = work.call([loader, work.root.inside(file)], ["LD_TRACE_LOADED_OBJECTS=1"], timeout_s=60)
        missing.update(re.findall(r"(\S+) => not found", done.stdout + done.stderr))
    problem = f"{result.problem}; missing libraries: {', '.join(sorted(missing))}"
    return replace(result, missing_libraries=tuple(sorted(missing)), problem=problem)
