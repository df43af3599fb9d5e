"""Check the installed TFLite runtimes."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from edgerec.contract.target import WHEELS
from edgerec.doctor.check_python import Python
from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_system import System
from edgerec.doctor.missing_libraries import install_command
from edgerec.tflite.runtime_packages import RUNTIMES
from edgerec.utils.child_process import TIMED_OUT, ask_python

_IMPORT = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps(True))"


@dataclass(frozen=True)
class Runtime:
    """An installed TFLite runtime.

    Attributes:
        package: name of the Python package.
        version: installed version.
        reason: error if the runtime cannot be imported; empty if it can, or if it is TensorFlow, whose import is slow
            and therefore not tested.
    """

    package: str
    version: str
    reason: str = ""


def collect() -> tuple[Runtime, ...]:
    """Return the installed runtimes in edgerec's order of preference."""
    result = []
    for package, module in RUNTIMES.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        reason = "" if package == "tensorflow" else ask_python(_IMPORT, module)[1]
        result.append(Runtime(package, version, reason))
    return tuple(result)


def check(runtimes: tuple[Runtime, ...], system: System, python: Python) -> list[CheckResult]:
    """Report the runtime that edgerec will use, and runtimes that cannot be imported."""
    result = []
    working = [runtime for runtime in runtimes if not runtime.reason]
    if working:
        result.append(ok("runtime", f"{working[0].package} {working[0].version}"))
    for broken in (runtime for runtime in runtimes if runtime.reason):
        report = note if working else problem
        detail = f"{broken.package} {broken.version} cannot be imported: {broken.reason}"
        result.append(report("runtime", detail, _fix(broken, system)))
    if not runtimes:
        result.append(_not_installed(system, python))
    elif working and working[0].package == "tensorflow" and "ai-edge-litert" in installable(system, python):
        detail = "TensorFlow is used as the runtime, but LiteRT starts faster"
        result.append(note("runtime", detail, "pip install ai-edge-litert"))
    return result


def installable(system: System, python: Python) -> list[str]:
    """Return the names of the runtimes that provide wheels for this system and Python version."""
    return [
        package
        for package, (systems, last) in WHEELS.items()
        if (system.os, system.arch) in systems and python.version[1] <= last and not python.free_threaded
    ]


def _not_installed(system: System, python: Python) -> CheckResult:
    if packages := installable(system, python):
        numpy = ' "numpy<2"' if packages[0] == "tflite-runtime" else ""
        return problem("runtime", "no TFLite runtime is installed", f"pip install {packages[0]}{numpy}")
    where = f"{system.os} on {system.arch}"
    newest = max((last for systems, last in WHEELS.values() if (system.os, system.arch) in systems), default=0)
    if not newest:
        return problem("runtime", f"no TFLite runtime provides wheels for {where}: use a 64-bit operating system")
    return problem(
        "runtime",
        f"no TFLite runtime provides wheels for Python {python.short} on {where}: use Python 3.{newest}",
        f"python3.{newest} -m venv .venv",
    )


def _fix(runtime: Runtime, system: System) -> str:
    reason = runtime.reason
    if reason.startswith(TIMED_OUT):
        return f'python -c "import {RUNTIMES[runtime.package]}"   # does it finish?'
    if re.search(r"numpy|_ARRAY_API|SIGSEGV", reason) and runtime.package == "tflite-runtime":
        return 'pip install "numpy<2"'
    if "numpy" in reason:
        return "pip install --upgrade numpy"
    if "GLIBC" in reason:
        return f"pip uninstall -y {runtime.package}   # it was built for a newer operating system"
    if "SIGILL" in reason:
        return f"pip uninstall -y {runtime.package}   # it was built for a newer CPU"
    return install_command(reason, system) or f"pip install --force-reinstall {runtime.package}"
