"""A bundle proven on the userland of a target: every Debian release it has, every processor, before it leaves."""

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
from edgerec.emulation.machine import Place, Userland, userlands
from edgerec.emulation.proof_images import some_pictures
from edgerec.emulation.score_comparison import Comparison, compare
from edgerec.emulation.wheels import check_requirements
from edgerec.errors import BundleError
from edgerec.export.readme import requirements as filled
from edgerec.export.wheel import FOLDER
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.interpreter import Fingerprint, fingerprint
from edgerec.runtime.verification import read_golden, tolerance
from edgerec.tflite.runtimes import RUNTIMES
from edgerec.utils.atomic import sha256
from edgerec.utils.progress import Listener, ignore
from edgerec.utils.subprocesses import ProgramResult

LOADERS = {"arm64": "/lib/ld-linux-aarch64.so.1", "armhf": "/lib/ld-linux-armhf.so.3"}
# What `edgerec predict`, `verify` and `camera` load there.
_MODULES = (
    "numpy", "cv2", "edgerec.cli.app", "edgerec.cli.camera", "edgerec.cli.predict", "edgerec.cli.verify",
    "edgerec.runtime.verification", "edgerec.runtime.benchmark", "edgerec.camera",
    "edgerec.camera.sources.opencv", "edgerec.camera.sources.files", "edgerec.camera.sinks",
)  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What one userland with one processor made of the bundle.

    Attributes:
        release, python: Debian's and its Python's version.
        machine: ``aarch64`` or ``armv7l``.
        processor: as qemu names it.
        runtime, version: of the interpreter there; empty where it did not come so far.
        edgerec: its version there.
        golden: against the bundle's golden vectors; None where it did not come so far.
        pictures: against this machine's answers to other pictures; None without any.
        import_errors: why modules do not load.
        missing_libraries: shared libraries that are not there.
        problem: the first thing that is wrong; empty: nothing.
        site_bytes: of the installed packages.
        seconds: of the run; emulated, and no measure of a device.
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
    """What :func:`prove` found; ``seconds`` of all, building included."""

    bundle: str
    on: str
    made_on: Fingerprint
    here: Fingerprint
    proofs: tuple[Proof, ...]
    seconds: float

    @property
    def problem(self) -> str:
        """The first thing that is wrong anywhere, and where; empty: nothing."""
        return next((f"Debian {p.release}, {p.processor}: {p.problem}" for p in self.proofs if p.problem), "")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"ok": not self.problem} | asdict(self)


@dataclass(frozen=True)
class _Case:
    """What is the same for all userlands."""

    bundle: Bundle
    requirements: str
    modules: tuple[str, ...]
    golden: dict[str, Any]
    made_on: Fingerprint
    pictures: dict[str, bytes]
    here: dict[str, Any]
    fingerprint: Fingerprint


def prove(
    bundle: str | Path,
    on: str = "rpi",
    *,
    data: str | Path | None = None,
    pictures: int = 300,
    releases: Sequence[str] = (),
    processors: Sequence[str] = (),
    find_links: str = "",
    listener: Listener = ignore,
) -> ProofReport:
    """Run a bundle on the userlands of a target, and compare its answers with those where it was made.

    A Debian root folder for each of the target's versions of Python is built once under ``cache_folder()``, with the
    bundle's requirements from wheels; the golden vectors are recomputed there under qemu as each processor.

    Args:
        bundle: its folder or .zip.
        on: a target that runs Debian on ARM: ``rpi``, ``rpi-32bit``, or a .toml file like them.
        data: more pictures, as :func:`edgerec.fit` takes data; answers are compared with this machine's.
        pictures: so many of them at most.
        releases: of Debian; none: all that the target has.
        processors: as qemu names them; none: those of the boards.
        find_links: a folder or address with more wheels, as pip's option.
        listener: told of the progress.

    Raises:
        BundleError: the bundle is damaged.
        TargetError: the target has no such userland, or it cannot be built; with what to do.
    """
    begun, aim, opened = time.monotonic(), Target.load(on), Bundle.open(bundle)
    case = _case(opened, aim, data, pictures)
    ready = userlands(
        aim,
        case.requirements,
        releases=releases,
        processors=processors,
        find_links=find_links,
        wheels=_wheels(opened),
        listener=listener,
    )
    proofs = tuple(_prove(case, userland, processor) for userland, processor in ready)
    return ProofReport(str(bundle), aim.name, case.made_on, case.fingerprint, proofs, time.monotonic() - begun)


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


def _case(bundle: Bundle, aim: Target, data: str | Path | None, pictures: int) -> _Case:
    text = _requirements(bundle, aim)
    made_on, vectors = read_golden(bundle)
    # In the userland the golden pictures are files among the others.
    names = {f"golden-{number:03d}.png": vector for number, vector in enumerate(vectors)}
    golden = {name: {"pixels": v["pixels_sha256"], "scores": v["scores"]} for name, v in names.items()}
    files = {name: bundle.files[vector["image"]] for name, vector in names.items()}
    others = some_pictures(str(data), pictures) if data is not None else {}
    classifier = Classifier(bundle, delegate="")
    runtime = [module for package, module in RUNTIMES.items() if package in text]
    return _Case(
        bundle=bundle,
        requirements=text,
        modules=(*runtime, *_MODULES),
        golden=golden,
        made_on=made_on,
        pictures=files | others,
        here={name: probe.answer(classifier, content) for name, content in others.items()},
        fingerprint=fingerprint(),
    )


def _requirements(bundle: Bundle, aim: Target) -> str:
    """The bundle's own, checked; of a bundle for another target those that this one would give it."""
    if bundle.manifest.target != aim.name or "requirements.txt" not in bundle.files:
        return filled(aim)
    text = bundle.files["requirements.txt"].decode("utf-8", "replace")
    check_requirements(text, aim.requirements, f"{bundle.path}/requirements.txt")
    return text


def _prove(case: _Case, userland: Userland, processor: str) -> Proof:
    begun, root = time.monotonic(), userland.root
    proof = Proof(root.release, root.python, userland.machine, processor, site_bytes=userland.site_bytes)
    with userland.place(processor) as place:
        case.bundle.copy(place.folder / "bundle.zip")
        (place.folder / "pictures").mkdir()
        for name, content in case.pictures.items():
            (place.folder / "pictures" / name).write_bytes(content)
        job = {"modules": case.modules, "bundle": f"{place.inside}/bundle.zip", "pictures": f"{place.inside}/pictures"}
        done, found = place.run(Path(probe.__file__), job)
        proof = _ended(proof, done) if found is None else _judged(case, proof, found)
        if proof.missing_libraries:
            proof = _all_missing(proof, place)
    return replace(proof, seconds=round(time.monotonic() - begun, 1))


def _ended(proof: Proof, done: ProgramResult) -> Proof:
    """Python itself did not come to its end there."""
    how = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
    problem = f"Python ended there with {how}: {done.last_line}"
    return replace(proof, missing_libraries=_libraries(done.stderr), problem=problem)


def _judged(case: _Case, proof: Proof, found: dict[str, Any]) -> Proof:
    if found["imports"]:
        errors = tuple(f"{module}: {reason}" for module, reason in found["imports"].items())
        return replace(
            proof,
            import_errors=errors,
            missing_libraries=_libraries("\n".join(errors)),
            problem=f"{errors[0]}" + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""),
        )
    there = Fingerprint(**found["here"])
    proof = replace(proof, runtime=there.runtime, version=there.version, edgerec=found["edgerec"])
    if "pictures" not in found:
        return replace(proof, problem=found["verify"])
    specs = case.bundle.manifest.models
    golden = compare(case.golden, found["pictures"], specs, [tolerance(case.made_on, there, spec) for spec in specs])
    pictures = None
    if case.here:
        allowed = [tolerance(case.fingerprint, there, spec) for spec in specs]
        pictures = compare(case.here, found["pictures"], specs, allowed)
    problem = golden.problem or found["verify"] or (pictures.problem if pictures else "")
    return replace(proof, golden=golden, pictures=pictures, problem=problem)


_LOST = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")


def _libraries(said: str) -> tuple[str, ...]:
    """The shared libraries that the loader did not find."""
    return tuple(sorted(set(_LOST.findall(said))))


def _all_missing(proof: Proof, place: Place) -> Proof:
    """Python stops at the first missing library; the loader names all that the packages want."""
    found, loader = set(proof.missing_libraries), LOADERS[place.root.architecture]
    packages = {line.partition(":")[0].partition(".")[0] for line in proof.import_errors}
    folders = [site / package for site in place.packages for package in packages]
    for file in (file for folder in folders for file in folder.rglob("*.so*") if file.is_file()):
        # As ldd asks it.
        done = place.call([loader, place.root.inside(file)], ["LD_TRACE_LOADED_OBJECTS=1"], timeout_s=60)
        found.update(re.findall(r"(\S+) => not found", done.stdout + done.stderr))
    problem = f"{proof.problem}; missing libraries: {', '.join(sorted(found))}"
    return replace(proof, missing_libraries=tuple(sorted(found)), problem=problem)
