"""What is installed beside edgerec, and whether it fits together."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edgerec.doctor.finding import Finding, ok, problem
from edgerec.doctor.system import arch, own_bits

OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
_EXTRAS = {
    "web": ("starlette", "uvicorn"),
    "mqtt": ("paho-mqtt",),
    "prometheus": ("prometheus-client",),
    "plots": ("matplotlib",),
    "train": ("tensorflow", "tf-keras", "tensorflow-model-optimization", "scikit-learn", "matplotlib"),
}
# Packages whose conflicts are edgerec's; a system's own packages have many that are not.
_OURS = (
    *("edgerec", "numpy", "typer", "ai-edge-litert", "tflite-runtime", "flatbuffers", "protobuf", "keras", "h5py"),
    *("ml-dtypes", *OPENCVS, *(name for names in _EXTRAS.values() for name in names)),
)
# What goes with tflite-runtime, which was built with NumPy 1.
_OLD_NUMPY = 'pip install "numpy<2" "opencv-python-headless<4.12"'
# A package's own words go into a command that people copy.
_PLAIN = re.compile(r"[\w.<>=!~*,-]+")


@dataclass(frozen=True)
class Conflict:
    """What a package needs and does not have.

    Attributes:
        package: with its version.
        wanted: as ``numpy<2``.
        have: the version that is there; empty for none.
    """

    package: str
    wanted: str
    have: str = ""


@dataclass(frozen=True)
class Packages:
    """Installed packages.

    Attributes:
        versions: by normalized name, of those that matter here.
        conflicts: among them.
    """

    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    conflicts: tuple[Conflict, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.versions

    def major(self, name: str) -> int:
        """The first number of its version; 0 where it is not installed."""
        return next(iter(numbers(self.versions.get(name, ""))), 0)


def look() -> Packages:
    """Those of this environment."""
    versions = {}
    for name in _OURS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Packages(versions, tuple(_conflicts(versions)))


def findings(packages: Packages) -> list[Finding]:
    """edgerec's extras, then conflicts."""
    extras = [name for name, needs in _EXTRAS.items() if all(need in packages for need in needs)]
    with_ = f" with {', '.join(extras)}" if extras else ""
    found = [ok("packages", f"edgerec {packages.versions.get('edgerec', '(not installed)')}{with_}")]
    old_numpy = "tflite-runtime" in packages
    if old_numpy and packages.major("numpy") >= 2:
        detail = f"tflite-runtime was built with NumPy 1 and crashes with {packages.versions['numpy']}"
        found.append(problem("packages", detail, _OLD_NUMPY))
    opencvs = [name for name in OPENCVS if name in packages]
    if len(opencvs) > 1:
        keep = next((name for name in opencvs if name.endswith("headless")), opencvs[0])
        mend = f"pip uninstall -y {' '.join(opencvs)} && pip install {keep}"
        found.append(problem("packages", f"{' and '.join(opencvs)} overwrite each other's files", mend))
    missing: dict[str, list[Conflict]] = {}
    for conflict in packages.conflicts:
        missing.setdefault(re.split(r"[<>=!~]", conflict.wanted, maxsplit=1)[0], []).append(conflict)
    return [*found, *(_told(name, conflicts, old_numpy) for name, conflicts in missing.items())]


def _told(name: str, conflicts: Sequence[Conflict], old_numpy: bool) -> Finding:
    have = conflicts[0].have
    needs = "; ".join(f"{conflict.package} needs {conflict.wanted}" for conflict in conflicts)
    bounds = ",".join(dict.fromkeys(conflict.wanted.removeprefix(name) for conflict in conflicts))
    mend = f'pip install "{name}{bounds.strip(",")}"' if _PLAIN.fullmatch(name + bounds) else ""
    detail = f"{name} {have} does not suit: {needs}" if have else f"{name} is not installed: {needs}"
    return problem("packages", detail, _OLD_NUMPY if name == "numpy" and old_numpy else mend)


def _conflicts(versions: Mapping[str, str]) -> Iterator[Conflict]:
    """As `pip check` finds them, in a tenth of the time."""
    # pip takes 32-bit programs under a 64-bit kernel for 64-bit ones.
    here = {"extra": "", "platform_machine": arch(platform.machine(), own_bits())}
    parse = _requirement_parser()
    for name, version in versions.items() if parse else ():
        for line in importlib.metadata.requires(name) or ():
            try:
                needed = parse(line)
                if needed.marker is not None and not needed.marker.evaluate(here):
                    continue
                have = importlib.metadata.version(needed.name)
                if needed.specifier.contains(have, prereleases=True):
                    continue
            except importlib.metadata.PackageNotFoundError:
                have = ""
            except ValueError:  # a line that is no requirement
                continue
            yield Conflict(f"{name} {version}", f"{needed.name}{needed.specifier}", have)


def _requirement_parser() -> Any:
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(module).Requirement
        except ImportError:
            continue
    return None


def numbers(version: str) -> tuple[int, ...]:
    """``(2, 14, 0)`` of ``2.14.0``, as far as there are numbers."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
