"""Verify a bundle in emulated userlands: every Debian release and every CPU of a target."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.emulation import probe
from edgerec.emulation.machine import Userland, WorkFolder, userlands
from edgerec.emulation.proof_images import select_images
from edgerec.emulation.score_comparison import Comparison, compare
from edgerec.emulation.wheels import check_requirements
from edgerec.errors import BundleError
from edgerec.export.readme import requirements as target_requirements
from edgerec.export.wheel import FOLDER
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.interpreter import Fingerprint, fingerprint
from edgerec.runtime.verification import read_golden, tolerance
from edgerec.tflite.runtimes import RUNTIMES
from edgerec.utils.atomic import sha256
from edgerec.utils.progress import Listener, ignore
from edgerec.utils.subprocesses import ProgramResult

LOADERS = {"arm64": "/lib/ld-linux-aarch64.so.1", "armhf": "/lib/ld-linux-armhf.so.3"}
# Modules that edgerec predict, verify and camera import on a device.
_MODULES = (
    "numpy", "cv2", "edgerec.cli.app", "edgerec.cli.camera", "edgerec.cli.predict", "edgerec.cli.verify",
    "edgerec.runtime.verification", "edgerec.runtime.benchmark", "edgerec.camera",
    "edgerec.camera.sources.opencv", "edgerec.camera.sources.files", "edgerec.camera.sinks",
)  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """Result of a bundle in one userland with one CPU.

    Attributes:
        release: name of the Debian release.
        python: version of its Python.
        machine: ``aarch64`` or ``armv7l``.
        processor: QEMU's name of the CPU.
        runtime, version: name and version of the TFLite runtime; empty if the runtime was not loaded.
        edgerec: version of edgerec in the userland; empty if it was not loaded.
        golden: comparison with the bundle's golden vectors; None if the model was not run.
        pictures: comparison with the scores of this machine on other images; None if there are no other images.
        import_errors: modules that cannot be imported, and the reasons.
        missing_libraries: shared libraries that are missing.
        problem: the first problem; empty if there is none.
        site_bytes: size of the installed packages.
        seconds: duration of the emulated run, which does not indicate the speed of a device.
    """

    release: str
    python: str
    machine: str
    processor: str
    runtime: str = ""
    version: str = ""
    edgerec: str = ""
    golden: Comparison | None = None
    pictures: Comparison | None = None
    import_errors: tuple[str, ...] = ()
    missing_libraries: tuple[str, ...] = ()
    problem: str = ""
    site_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class ProofReport:
    """Result of :func:`prove`.

    Attributes:
        bundle: path of the bundle.
        on: name of the target.
        made_on: the machine that exported the bundle.
        here: this machine.
        proofs: one result for each userland and CPU.
        seconds: total duration, including the installation of the userlands.
    """

    bundle: str
    on: str
    made_on: Fingerprint
    here: Fingerprint
    proofs: tuple[Proof, ...]
    seconds: float

    @property
    def problem(self) -> str:
        """Return the first problem, with its Debian release and CPU; empty if there is none."""
        return next((f"Debian {p.release}, {p.processor}: {p.problem}" for p in self.proofs if p.problem), "")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-compatible dict."""
        return {"ok": not self.problem} | asdict(self)


@dataclass(frozen=True)
class _Case:
    """Inputs and expected results, which are the same for all userlands.

    Attributes:
        bundle: the bundle.
        requirements: content of the requirements.txt to install.
        modules: modules to import.
        golden: expected pixels and scores of the golden images, by file name.
        made_on: the machine that computed the golden vectors.
        images: content of all image files, by file name.
        here: pixels and scores of the other images on this machine, by file name.
        fingerprint: this machine.
    """

    bundle: Bundle
    requirements: str
    modules: tuple[str, ...]
    golden: dict[str, Any]
    made_on: Fingerprint
    images: dict[str, bytes]
    here: dict[str, Any]
    fingerprint: Fingerprint


def prove(
    bundle: str | Path,
    on: str = "rpi",
    *,
    data: str | Path | None = None,
    images: int = 300,
    releases: Sequence[str] = (),
    processors: Sequence[str] = (),
    find_links: str = "",
    listener: Listener = ignore,
) -> ProofReport:
    """Run a bundle in the userlands of a target, and compare its scores with those of the machine that exported it.

    For each Debian release of the target, a root folder with the bundle's requirements is installed once in
    ``cache_folder()``. The golden vectors are recomputed in it under QEMU for each CPU.

    Args:
        bundle: path of the bundle: a folder, or a .zip.
        on: a target that runs Debian on ARM: ``rpi``, ``rpi-32bit``, or a .toml file based on one of them.
        data: other images, in a format that :func:`edgerec.fit` accepts. Their scores in the userland are compared
            with the scores on this machine.
        images: maximum number of other images.
        releases: names of Debian releases; if empty, all releases of the target.
        processors: QEMU's names of CPUs; if empty, the CPUs of the target's boards.
        find_links: folder or URL with more wheels, as for pip's ``--find-links``.
        listener: receives the progress.

    Raises:
        BundleError: the bundle is damaged.
        TargetError: the target has no userland, or the userland cannot be installed on this machine.
    """
    started, target, opened = time.monotonic(), Target.load(on), Bundle.open(bundle)
    case = _case(opened, target, data, images)
    environments = userlands(
        target,
        case.requirements,
        releases=releases,
        processors=processors,
        find_links=find_links,
        wheels=_wheels(opened),
        listener=listener,
    )
    proofs = tuple(_prove(case, userland, processor) for userland, processor in environments)
    return ProofReport(str(bundle), target.name, case.made_on, case.fingerprint, proofs, time.monotonic() - started)


def _wheels(bundle: Bundle) -> dict[str, bytes]:
    """Return the wheels of a bundle.

    Raises:
        BundleError: a wheel was changed. It must not be installed, because its code would run.
    """
    wheels = {name: content for name, content in bundle.files.items() if name.startswith(f"{FOLDER}/")}
    for name, content in wheels.items():
        if sha256(content) != bundle.manifest.files[name]:
            raise BundleError(
                f"{bundle.path}: {name} was changed and is not installed: copy or export the bundle again"
            )
    return wheels


def _case(bundle: Bundle, target: Target, data: str | Path | None, images: int) -> _Case:
    text = _requirements(bundle, target)
    made_on, vectors = read_golden(bundle)
    # In the userland, golden images and other images are in the same folder.
    names = {f"golden-{number:03d}.png": vector for number, vector in enumerate(vectors)}
    golden = {name: {"pixels": v["pixels_sha256"], "scores": v["scores"]} for name, v in names.items()}
    files = {name: bundle.files[vector["image"]] for name, vector in names.items()}
    others = select_images(str(data), images) if data is not None else {}
    classifier = Classifier(bundle, delegate="")
    runtime = [module for package, module in RUNTIMES.items() if package in text]
    return _Case(
        bundle=bundle,
        requirements=text,
        modules=(*runtime, *_MODULES),
        golden=golden,
        made_on=made_on,
        images=files | others,
        here={name: probe.pixels_and_scores(classifier, content) for name, content in others.items()},
        fingerprint=fingerprint(),
    )


def _requirements(bundle: Bundle, target: Target) -> str:
    """Return the bundle's requirements after validation, or those of ``target`` if the bundle is for another target."""
    if bundle.manifest.target != target.name or "requirements.txt" not in bundle.files:
        return target_requirements(target)
    text = bundle.files["requirements.txt"].decode("utf-8", "replace")
    check_requirements(text, target.requirements, f"{bundle.path}/requirements.txt")
    return text


def _prove(case: _Case, userland: Userland, processor: str) -> Proof:
    started, root = time.monotonic(), userland.root
    proof = Proof(root.release, root.python, userland.machine, processor, site_bytes=userland.site_bytes)
    with userland.work_folder(processor) as work:
        case.bundle.copy(work.folder / "bundle.zip")
        (work.folder / "pictures").mkdir()
        for name, content in case.images.items():
            (work.folder / "pictures" / name).write_bytes(content)
        job = {"modules": case.modules, "bundle": f"{work.inside}/bundle.zip", "pictures": f"{work.inside}/pictures"}
        done, output = work.run(Path(probe.__file__), job)
        proof = _with_failure(proof, done) if output is None else _with_results(case, proof, output)
        if proof.missing_libraries:
            proof = _with_all_missing_libraries(proof, work)
    return replace(proof, seconds=round(time.monotonic() - started, 1))


def _with_failure(proof: Proof, done: ProgramResult) -> Proof:
    """Add the problem that Python itself failed in the userland."""
    how = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
    problem = f"Python ended in the userland with {how}: {done.last_line}"
    return replace(proof, missing_libraries=_libraries(done.stderr), problem=problem)


def _with_results(case: _Case, proof: Proof, output: dict[str, Any]) -> Proof:
    """Add the output of probe.py and its comparison with the expected results."""
    if output["imports"]:
        errors = tuple(f"{module}: {reason}" for module, reason in output["imports"].items())
        return replace(
            proof,
            import_errors=errors,
            missing_libraries=_libraries("\n".join(errors)),
            problem=errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""),
        )
    there = Fingerprint(**output["here"])
    proof = replace(proof, runtime=there.runtime, version=there.version, edgerec=output["edgerec"])
    if "pictures" not in output:
        return replace(proof, problem=output["verify"])
    specs = case.bundle.manifest.models
    golden = compare(case.golden, output["pictures"], specs, [tolerance(case.made_on, there, spec) for spec in specs])
    others = None
    if case.here:
        allowed = [tolerance(case.fingerprint, there, spec) for spec in specs]
        others = compare(case.here, output["pictures"], specs, allowed)
    problem = golden.problem or output["verify"] or (others.problem if others else "")
    return replace(proof, golden=golden, pictures=others, problem=problem)


_MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")


def _libraries(errors: str) -> tuple[str, ...]:
    """Return the shared libraries that are missing according to error messages of the dynamic loader."""
    return tuple(sorted(set(_MISSING_LIBRARY.findall(errors))))


def _with_all_missing_libraries(proof: Proof, work: WorkFolder) -> Proof:
    """Add all missing libraries of the packages that failed, because Python reports only the first missing library."""
    missing, loader = set(proof.missing_libraries), LOADERS[work.root.architecture]
    packages = {line.partition(":")[0].partition(".")[0] for line in proof.import_errors}
    folders = [site / package for site in work.packages for package in packages]
    for file in (file for folder in folders for file in folder.rglob("*.so*") if file.is_file()):
        # ldd uses the same environment variable.
        done = work.call([loader, work.root.inside(file)], ["LD_TRACE_LOADED_OBJECTS=1"], timeout_s=60)
        missing.update(re.findall(r"(\S+) => not found", done.stdout + done.stderr))
    problem = f"{proof.problem}; missing libraries: {', '.join(sorted(missing))}"
    return replace(proof, missing_libraries=tuple(sorted(missing)), problem=problem)
