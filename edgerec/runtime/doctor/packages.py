"""What is installed beside edgerec, and whether it fits together."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edgerec.runtime.doctor.child import run
from edgerec.runtime.doctor.finding import Finding, note, ok, problem

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
    *("ml-dtypes", "simplejpeg", *OPENCVS, *(name for names in _EXTRAS.values() for name in names)),
)
# As `pip check` says it.
_MISSING = re.compile(r"(\S+) \S+ requires ([\w.-]+), which is not installed\.")
_WRONG = re.compile(r"(\S+) \S+ has requirement ([\w.-]+)([^,]*(?:,[^,]+)*), but you have \S+ (\S+)\.")
_VERSION = re.compile(r"[\w.<>=!~*, +-]+")


@dataclass(frozen=True)
class Packages:
    """Installed packages.

    Attributes:
        versions: by normalized name, of those that matter here.
        conflicts: lines of ``pip check``.
    """

    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    conflicts: tuple[str, ...] = ()

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
    # It reads what packages say of themselves, and imports none.
    said = run([sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "check"]).said or ""
    conflicts = [line for line in said.splitlines() if _MISSING.match(line) or _WRONG.match(line)]
    return Packages(versions, tuple(conflicts))


def findings(packages: Packages) -> list[Finding]:
    """edgerec's extras, then conflicts."""
    extras = [name for name, needs in _EXTRAS.items() if all(need in packages for need in needs)]
    with_ = f" with {', '.join(extras)}" if extras else ""
    found = [ok("packages", f"edgerec {packages.versions.get('edgerec', '(not installed)')}{with_}")]
    if "tflite-runtime" in packages and packages.major("numpy") >= 2:
        found.append(
            problem(
                "packages",
                f"tflite-runtime was built with NumPy 1 and crashes with {packages.versions['numpy']}",
                'pip install "numpy<2" "opencv-python-headless<4.12"',
            )
        )
    opencvs = [name for name in OPENCVS if name in packages]
    if len(opencvs) > 1:
        keep = next((name for name in opencvs if name.endswith("headless")), opencvs[0])
        mend = f"pip uninstall -y {' '.join(opencvs)} && pip install {keep}"
        found.append(problem("packages", f"{' and '.join(opencvs)} overwrite each other's files", mend))
    return [*found, *_conflicts(packages)]


def _conflicts(packages: Packages) -> list[Finding]:
    found = []
    for line in packages.conflicts:
        match = _MISSING.match(line) or _WRONG.match(line)
        if match is None:
            continue
        wanted = match[2] + (match[3] if match.re is _WRONG else "")
        mend = f'pip install "{wanted}"' if _VERSION.fullmatch(wanted) else ""
        ours = bool({_normal(match[1]), _normal(match[2])}.intersection(_OURS))
        found.append((problem if ours else note)("packages", line.rstrip("."), mend))
    return found


def numbers(version: str) -> tuple[int, ...]:
    """``(2, 14, 0)`` of ``2.14.0``, as far as there are numbers."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
