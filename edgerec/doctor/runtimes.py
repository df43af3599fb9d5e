"""The runtimes that a .tflite model can run in."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from edgerec.contract.target import WHEELS
from edgerec.doctor import libraries
from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.python import Python
from edgerec.doctor.system import System
from edgerec.tflite.runtimes import RUNTIMES
from edgerec.utils.child_process import TIMED_OUT, ask_python

_IMPORT = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps(True))"


@dataclass(frozen=True)
class Runtime:
    """One that is installed.

    Attributes:
        package: its name.
        version: as installed.
        reason: why it does not load; empty when it does. TensorFlow is not tried: that takes seconds.
    """

    package: str
    version: str
    reason: str = ""


def look() -> tuple[Runtime, ...]:
    """Those that are installed."""
    found = []
    for package, module in RUNTIMES.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        tried = package != "tensorflow"
        found.append(Runtime(package, version, ask_python(_IMPORT, module)[1] if tried else ""))
    return tuple(found)


def findings(runtimes: tuple[Runtime, ...], system: System, python: Python) -> list[Finding]:
    """Which one is taken, and those that do not load."""
    found = []
    whole = [runtime for runtime in runtimes if not runtime.reason]
    if whole:
        found.append(ok("runtime", f"{whole[0].package} {whole[0].version}"))
    for broken in (runtime for runtime in runtimes if runtime.reason):
        state = note if whole else problem
        found.append(state("runtime", f"{broken.package} {broken.version}: {broken.reason}", _mend(broken, system)))
    if not runtimes:
        found.append(_none(system, python))
    elif whole and whole[0].package == "tensorflow" and "ai-edge-litert" in installable(system, python):
        found.append(note("runtime", "TensorFlow's own is slower to start", "pip install ai-edge-litert"))
    return found


def installable(system: System, python: Python) -> list[str]:
    """The runtimes that have a wheel for this system and Python."""
    return [
        package
        for package, (systems, last) in WHEELS.items()
        if (system.os, system.arch) in systems and python.version[1] <= last and not python.free_threaded
    ]


def _none(system: System, python: Python) -> Finding:
    if fitting := installable(system, python):
        with_ = ' "numpy<2"' if fitting[0] == "tflite-runtime" else ""
        return problem("runtime", "none is installed", f"pip install {fitting[0]}{with_}")
    where = f"{system.os} on {system.arch}"
    newest = max((last for systems, last in WHEELS.values() if (system.os, system.arch) in systems), default=0)
    if not newest:
        return problem("runtime", f"none has a wheel for {where}: a 64-bit system has one")
    return problem(
        "runtime",
        f"none has a wheel for Python {python.short} on {where}: the last is for 3.{newest}",
        f"python3.{newest} -m venv .venv",
    )


def _mend(runtime: Runtime, system: System) -> str:
    reason = runtime.reason
    if reason.startswith(TIMED_OUT):
        return f'python -c "import {RUNTIMES[runtime.package]}"   # does it end?'
    if re.search(r"numpy|_ARRAY_API|SIGSEGV", reason) and runtime.package == "tflite-runtime":
        return 'pip install "numpy<2"'
    if "numpy" in reason:
        return "pip install --upgrade numpy"
    if "GLIBC" in reason:
        return f"pip uninstall -y {runtime.package}   # it is for a newer system than this"
    if "SIGILL" in reason:
        return f"pip uninstall -y {runtime.package}   # it is for a newer processor than this"
    return libraries.mend(reason, system) or f"pip install --force-reinstall {runtime.package}"
