"""Check the Python interpreter, its environment and pip."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.check_packages import numbers
from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_system import System
from edgerec.utils.child_process import run_program

# Older versions of pip do not support the wheel tags manylinux_2_x and musllinux.
_MIN_PIP = (21, 2)


@dataclass(frozen=True)
class Python:
    """The Python interpreter that runs edgerec.

    Attributes:
        version: Python version, e.g. ``(3, 11, 2)``.
        executable: path of the interpreter.
        venv: whether the interpreter belongs to a virtual environment.
        system_site_packages: whether the virtual environment includes system packages.
        managed: whether the environment is externally managed, i.e. pip refuses to install packages (PEP 668).
        free_threaded: whether Python was built without the GIL.
        translated: whether this is an x86 Python on Apple silicon.
        pip: pip version; empty if pip is not installed.
    """

    version: tuple[int, int, int] = (3, 11, 2)
    executable: str = "/usr/bin/python3"
    venv: bool = True
    system_site_packages: bool = False
    managed: bool = False
    free_threaded: bool = False
    translated: bool = False
    pip: str = "25.0"

    @property
    def short(self) -> str:
        """Major and minor version, e.g. ``3.11``."""
        return f"{self.version[0]}.{self.version[1]}"


def collect() -> Python:
    """Return information about the running Python interpreter."""
    try:
        pip = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        pip = ""
    prefix = Path(sys.prefix)
    settings = prefix / "pyvenv.cfg"
    return Python(
        version=sys.version_info[:3],
        executable=sys.executable,
        venv=sys.prefix != sys.base_prefix,
        system_site_packages=settings.is_file()
        and "include-system-site-packages = true" in settings.read_text(errors="replace"),
        managed=(Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file(),
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        translated=_translated(),
        pip=pip,
    )


def check(python: Python, system: System) -> list[CheckResult]:
    """Check the Python interpreter, its environment and pip."""
    version = ".".join(map(str, python.version))
    kind = "virtual environment" if python.venv else "no virtual environment"
    result = [ok("Python", f"{version}, {kind}, {python.executable}")]
    new_environment = "py -m venv .venv" if system.os == "Windows" else "python3 -m venv .venv && . .venv/bin/activate"
    if python.managed and not python.venv:
        detail = "pip refuses to install packages for the system's Python: create a virtual environment"
        result.append(note("Python", detail, new_environment))
    if python.free_threaded:
        detail = "no TFLite runtime provides wheels for free-threaded Python"
        result.append(problem("Python", detail, f"use {python.short}"))
    if python.translated:
        detail = "this is an Intel build of Python on Apple silicon, but LiteRT only provides wheels for ARM builds"
        result.append(problem("Python", detail, "arch -arm64 zsh"))
    if not python.pip:
        result.append(note("pip", "pip is not installed in this environment", "python -m ensurepip --upgrade"))
    elif numbers(python.pip) < _MIN_PIP:
        detail = f"pip {python.pip} is too old to find all required wheels"
        result.append(note("pip", detail, "python -m pip install --upgrade pip"))
    return result


def _translated() -> bool:
    if platform.system() != "Darwin" or platform.machine() != "x86_64":
        return False
    return run_program(["sysctl", "-n", "sysctl.proc_translated"], timeout_s=5).stdout.strip() == "1"
