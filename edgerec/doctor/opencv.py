"""OpenCV, which reads and prepares pictures, and the screen for its windows."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from edgerec.doctor import libraries
from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.packages import OPENCVS, Packages
from edgerec.doctor.system import System
from edgerec.utils.child_process import TIMED_OUT, ask_python

_IMPORT = """
import json, re
try:
    import numpy
except Exception as error:
    raise SystemExit(f"NumPy does not load: {error}")
import cv2
gui = re.search(r"^ +GUI: +(.*?) *$", cv2.getBuildInformation(), re.M)
print(json.dumps([cv2.__version__, gui[1] if gui else ""]))
"""


@dataclass(frozen=True)
class OpenCV:
    """What ``import cv2`` gives.

    Attributes:
        version: empty where it does not load.
        gui: what draws its windows, as ``QT5``; ``NONE`` without.
        reason: why it does not load.
        screen: whether there is one for windows.
        ssh: whether the person sits at another machine.
    """

    version: str = "4.11.0"
    gui: str = "NONE"
    reason: str = ""
    screen: bool = False
    ssh: bool = False


def look() -> OpenCV:
    """This environment's."""
    value, reason = ask_python(_IMPORT)
    version, gui = value or ("", "")
    screen = not sys.platform.startswith("linux") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return OpenCV(version, gui, reason, screen, "SSH_CONNECTION" in os.environ)


def findings(opencv: OpenCV, packages: Packages, system: System) -> list[Finding]:
    """OpenCV, then the screen."""
    extra = "desktop" if opencv.screen else "headless"
    if "No module named 'cv2'" in opencv.reason:
        return [problem("OpenCV", "not installed: pictures cannot be read", f'pip install "edgerec[{extra}]"')]
    if opencv.reason:
        return [problem("OpenCV", f"it does not load: {opencv.reason}", _mend(opencv.reason, packages, system))]
    windows = opencv.gui not in ("NONE", "")
    found = [ok("OpenCV", f"{opencv.version}, {f'windows by {opencv.gui}' if windows else 'no windows (headless)'}")]
    if opencv.screen and not windows:
        found.append(
            note(
                "display",
                "there is a screen, and this OpenCV has no windows: --headless, --json or --web",
                "pip uninstall -y opencv-python-headless && pip install opencv-python",
            )
        )
    elif opencv.screen:
        found.append(ok("display", "a window can open"))
    else:
        how = "you came by SSH" if opencv.ssh else "no screen"
        found.append(ok("display", f"{how}: edgerec camera wants --headless, --json or --web"))
    return found


def _mend(reason: str, packages: Packages, system: System) -> str:
    installed = [name for name in OPENCVS if name in packages]
    if "has no attribute" in reason and installed:  # the files of another one were taken away
        return f"pip install --force-reinstall --no-deps {installed[0]}"
    if reason.startswith(TIMED_OUT):
        return 'python -c "import cv2"   # does it end?'
    if "NumPy does not load" in reason:
        return libraries.mend(reason, system) or "pip install --force-reinstall numpy"
    if "numpy" in reason or "_ARRAY_API" in reason:
        return f'pip install --upgrade {installed[0] if installed else "opencv-python-headless"} "numpy>=2"'
    return libraries.mend(reason, system) or 'pip install --force-reinstall "edgerec[headless]"'
