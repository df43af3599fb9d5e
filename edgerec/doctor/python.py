"""Python and its environment."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.packages import numbers
from edgerec.doctor.system import System
from edgerec.utils.child_process import run_program

# The first pip that knows all tags of the wheels that edgerec needs (manylinux_2_x, musllinux: 21.2).
_PIP = (21, 2)


@dataclass(frozen=True)
class Python:
    """The interpreter that edgerec runs in.

    Attributes:
        version: as ``(3, 11, 2)``.
        executable: its path.
        venv: whether it is a virtual environment's.
        site: whether that sees the system's packages.
        managed: whether the system forbids pip here (PEP 668).
        free_threaded: built without the GIL.
        translated: an x86 Python on Apple silicon.
        pip: its version; empty where there is none.
    """

    version: tuple[int, int, int] = (3, 11, 2)
    executable: str = "/usr/bin/python3"
    venv: bool = True
    site: bool = False
    managed: bool = False
    free_threaded: bool = False
    translated: bool = False
    pip: str = "25.0"

    @property
    def short(self) -> str:
        """As ``3.11``."""
        return f"{self.version[0]}.{self.version[1]}"


def look() -> Python:
    """The Python that runs this."""
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
        site=settings.is_file() and "include-system-site-packages = true" in settings.read_text(errors="replace"),
        managed=(Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file(),
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        translated=_translated(),
        pip=pip,
    )


def findings(python: Python, system: System) -> list[Finding]:
    """The interpreter, its environment and pip."""
    version = ".".join(map(str, python.version))
    kind = "environment" if python.venv else "no virtual environment"
    found = [ok("Python", f"{version}, {kind}, {python.executable}")]
    make = "py -m venv .venv" if system.os == "Windows" else "python3 -m venv .venv && . .venv/bin/activate"
    if python.managed and not python.venv:
        found.append(note("Python", "it is the system's own: pip refuses to install into it", make))
    if python.free_threaded:
        found.append(problem("Python", "built without the GIL: no runtime has a wheel for it", f"use {python.short}"))
    if python.translated:
        found.append(
            problem("Python", "an Intel Python on Apple silicon: LiteRT has no wheel for it", "arch -arm64 zsh")
        )
    if not python.pip:
        found.append(note("pip", "none in this environment", "python -m ensurepip --upgrade"))
    elif numbers(python.pip) < _PIP:
        found.append(note("pip", f"{python.pip} does not know all wheels", "python -m pip install --upgrade pip"))
    return found


def _translated() -> bool:
    if platform.system() != "Darwin" or platform.machine() != "x86_64":
        return False
    return run_program(["sysctl", "-n", "sysctl.proc_translated"], timeout_s=5).stdout.strip() == "1"
