"""Check the installed Python packages for version conflicts."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edgerec.doctor.check_result import CheckResult, ok, problem
from edgerec.doctor.check_system import arch, own_bits

OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
_EXTRAS = {
    "web": ("starlette", "uvicorn"),
    "mqtt": ("paho-mqtt",),
    "prometheus": ("prometheus-client",),
    "gpio": ("gpiozero",),
    "plots": ("matplotlib",),
    "train": ("tensorflow", "tf-keras", "tensorflow-model-optimization", "scikit-learn", "matplotlib"),
}
# Only these packages are checked, because conflicts between other packages do not affect edgerec.
_CHECKED = (
    *("edgerec", "numpy", "typer", "ai-edge-litert", "tflite-runtime", "flatbuffers", "protobuf", "keras", "h5py"),
    *("ml-dtypes", *OPENCVS, *(name for names in _EXTRAS.values() for name in names)),
)
# tflite-runtime was built with NumPy 1, but OpenCV 4.12 and newer require NumPy 2.
_OLD_NUMPY = 'pip install "numpy<2" "opencv-python-headless<4.12"'
# Only requirements with these characters are suggested, because users paste suggested commands into a shell.
_PLAIN = re.compile(r"[\w.<>=!~*,-]+")


@dataclass(frozen=True)
class Conflict:
    """An unmet requirement of an installed package.

    Attributes:
        package: name and version of the installed package.
        requirement: its requirement, e.g. ``numpy<2``.
        installed: installed version of the required package; empty if it is not installed.
    """

    package: str
    requirement: str
    installed: str = ""


@dataclass(frozen=True)
class Packages:
    """The installed packages.

    Attributes:
        versions: versions of the checked packages, keyed by normalized name.
        conflicts: unmet requirements of these packages.
    """

    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    conflicts: tuple[Conflict, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.versions

    def major(self, name: str) -> int:
        """Return a package's major version, or 0 if it is not installed."""
        return next(iter(numbers(self.versions.get(name, ""))), 0)


def collect() -> Packages:
    """Return the installed versions of edgerec's dependencies and any conflicts between them."""
    versions = {}
    for name in _CHECKED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Packages(versions, tuple(find_conflicts(versions)))


def check(packages: Packages) -> list[CheckResult]:
    """Report the installed extras of edgerec and any conflicts between packages."""
    extras = [name for name, needs in _EXTRAS.items() if all(need in packages for need in needs)]
    extras_text = f" with {', '.join(extras)}" if extras else ""
    result = [ok("packages", f"edgerec {packages.versions.get('edgerec', '(not installed)')}{extras_text}")]
    old_numpy = "tflite-runtime" in packages
    if old_numpy and packages.major("numpy") >= 2:
        detail = f"tflite-runtime was built with NumPy 1 and crashes with NumPy {packages.versions['numpy']}"
        result.append(problem("packages", detail, _OLD_NUMPY))
    opencvs = [name for name in OPENCVS if name in packages]
    if len(opencvs) > 1:
        keep = next((name for name in opencvs if name.endswith("headless")), opencvs[0])
        fix = f"pip uninstall -y {' '.join(opencvs)} && pip install {keep}"
        result.append(problem("packages", f"{' and '.join(opencvs)} overwrite each other's files", fix))
    by_name: dict[str, list[Conflict]] = {}
    for conflict in packages.conflicts:
        by_name.setdefault(re.split(r"[<>=!~]", conflict.requirement, maxsplit=1)[0], []).append(conflict)
    return [*result, *(_conflict_result(name, found, old_numpy) for name, found in by_name.items())]


def _conflict_result(name: str, conflicts: Sequence[Conflict], old_numpy: bool) -> CheckResult:
    installed = conflicts[0].installed
    needs = "; ".join(f"{conflict.package} requires {conflict.requirement}" for conflict in conflicts)
    bounds = ",".join(dict.fromkeys(conflict.requirement.removeprefix(name) for conflict in conflicts))
    fix = f'pip install "{name}{bounds.strip(",")}"' if _PLAIN.fullmatch(name + bounds) else ""
    detail = f"{name} {installed} is incompatible: {needs}" if installed else f"{name} is not installed: {needs}"
    return problem("packages", detail, _OLD_NUMPY if name == "numpy" and old_numpy else fix)


def find_conflicts(versions: Mapping[str, str]) -> Iterator[Conflict]:
    """Yield the unmet requirements of packages, as ``pip check`` does, but faster."""
    # In a 32-bit process on a 64-bit kernel, platform.machine() returns the 64-bit architecture.
    environment = {"extra": "", "platform_machine": arch(platform.machine(), own_bits())}
    parse = _requirement_parser()
    for name, version in versions.items() if parse else ():
        for line in importlib.metadata.requires(name) or ():
            try:
                needed = parse(line)
                if needed.marker is not None and not needed.marker.evaluate(environment):
                    continue
                installed = importlib.metadata.version(needed.name)
                if needed.specifier.contains(installed, prereleases=True):
                    continue
            except importlib.metadata.PackageNotFoundError:
                installed = ""
            except ValueError:  # invalid requirement
                continue
            yield Conflict(f"{name} {version}", f"{needed.name}{needed.specifier}", installed)


def _requirement_parser() -> Any:
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(module).Requirement
        except ImportError:
            continue
    return None


def numbers(version: str) -> tuple[int, ...]:
    """Parse the release numbers of a version string, e.g. ``(2, 14, 0)`` for ``2.14.0rc1``."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
