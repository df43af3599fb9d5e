"""Find the Debian package that provides a missing system library."""

from __future__ import annotations

import re

from edgerec.doctor.check_system import System

_PACKAGES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxcb.so.1": "libxcb1",
    "libSM.so.6": "libsm6",
    "libXext.so.6": "libxext6",
    "libXrender.so.1": "libxrender1",
    "libstdc++.so.6": "libstdc++6",
    "libgomp.so.1": "libgomp1",
    "libopenblas.so.0": "libopenblas0",
    "libatlas.so.3": "libatlas3-base",
    "libcblas.so.3": "libatlas3-base",
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libvulkan.so.1": "libvulkan1",
}
# OpenCV requires these Debian packages, but its error message names only the first missing library.
_OPENCV_PACKAGES = {"libgl1", "libglib2.0-0", "libxcb1"}


def install_command(reason: str, system: System) -> str:
    """Return a command that installs a missing library, or an empty string if no library is missing.

    Args:
        reason: error message of the failed import.
        system: the operating system. The command is for Debian and its derivatives.
    """
    missing = re.search(r"(lib[\w.+-]+\.so(?:\.\d+)*): cannot open shared object file", reason)
    if missing is None or system.os != "Linux":
        return ""
    package = _PACKAGES.get(missing[1])
    if package is None:
        return f"apt-file search {missing[1]}"
    packages = {package} if package not in _OPENCV_PACKAGES else {package, "libgl1", "libglib2.0-0"}
    return f"{system.sudo}apt install {' '.join(sorted(packages))}"
