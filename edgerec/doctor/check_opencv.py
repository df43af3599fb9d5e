"""Check OpenCV, which edgerec requires for reading images and opening windows."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from edgerec.doctor.check_packages import OPENCVS, Packages
from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_system import System
from edgerec.doctor.missing_libraries import install_command
from edgerec.utils.child_process import TIMED_OUT, ask_python

_IMPORT = """
import json, re
try:
    import numpy
except Exception as error:
    raise SystemExit(f"NumPy cannot be imported: {error}")
import cv2
gui = re.search(r"^ +GUI: +(.*?) *$", cv2.getBuildInformation(), re.M)
print(json.dumps([cv2.__version__, gui[1] if gui else ""]))
"""


@dataclass(frozen=True)
class OpenCV:
    """The OpenCV installation and its support for windows.

    Attributes:
        version: OpenCV version; empty if OpenCV cannot be imported.
        gui: GUI library, e.g. ``QT5``; ``NONE`` if this OpenCV cannot open windows.
        reason: error if OpenCV cannot be imported; empty if it can.
        display: whether there is a display.
        ssh: whether this is an SSH session.
    """

    version: str = "4.11.0"
    gui: str = "NONE"
    reason: str = ""
    display: bool = False
    ssh: bool = False


def collect() -> OpenCV:
    """Return information about the OpenCV installation."""
    value, reason = ask_python(_IMPORT)
    version, gui = value or ("", "")
    display = not sys.platform.startswith("linux") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return OpenCV(version, gui, reason, display, "SSH_CONNECTION" in os.environ)


def check(opencv: OpenCV, packages: Packages, system: System) -> list[CheckResult]:
    """Check whether OpenCV can be imported and can open windows."""
    extra = "desktop" if opencv.display else "headless"
    if "No module named 'cv2'" in opencv.reason:
        return [
            problem(
                "OpenCV",
                "OpenCV, which is required to read images, is not installed",
                f'pip install "edgerec[{extra}]"',
            )
        ]
    if opencv.reason:
        return [problem("OpenCV", f"OpenCV cannot be imported: {opencv.reason}", _fix(opencv.reason, packages, system))]
    windows = opencv.gui not in ("NONE", "")
    result = [ok("OpenCV", f"{opencv.version}, {f'windows with {opencv.gui}' if windows else 'no windows (headless)'}")]
    if opencv.display and not windows:
        detail = "there is a display, but this OpenCV cannot open windows: use --headless, --json or --web"
        fix = "pip uninstall -y opencv-python-headless && pip install opencv-python"
        result.append(note("display", detail, fix))
    elif opencv.display:
        result.append(ok("display", "windows can be opened"))
    else:
        reason = "this is an SSH session" if opencv.ssh else "there is no display"
        result.append(ok("display", f"{reason}, so edgerec camera requires --headless, --json or --web"))
    return result


def _fix(reason: str, packages: Packages, system: System) -> str:
    installed = [name for name in OPENCVS if name in packages]
    if "has no attribute" in reason and installed:  # Uninstalling another OpenCV package deletes shared files.
        return f"pip install --force-reinstall --no-deps {installed[0]}"
    if reason.startswith(TIMED_OUT):
        return 'python -c "import cv2"   # does it finish?'
    if "NumPy cannot be imported" in reason:
        return install_command(reason, system) or "pip install --force-reinstall numpy"
    if "numpy" in reason or "_ARRAY_API" in reason:
        return f'pip install --upgrade {installed[0] if installed else "opencv-python-headless"} "numpy>=2"'
    return install_command(reason, system) or 'pip install --force-reinstall "edgerec[headless]"'
