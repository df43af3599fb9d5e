"""Find the QEMU user emulator on this machine, or download it from Debian if it is missing or too old."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from edgerec.emulation.debian import apt, unpack
from edgerec.emulation.tools import checked, need
from edgerec.errors import TargetError
from edgerec.utils.atomic import replacing
from edgerec.utils.lock import Lock
from edgerec.utils.subprocesses import call

# With its default CPU, version 7.2 computes wrong XNNPACK results without an error.
MIN_VERSION = 10
# Debian release from which QEMU is downloaded. Its program is linked statically, so it works on other systems too.
RELEASE = "trixie"
PROGRAMS = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
# Machine names that can run each Debian architecture without an emulator.
_NATIVE_MACHINES = {"arm64": ("aarch64", "arm64")}


def find_qemu(architecture: str, cache: Path) -> Path | None:
    """Return the path of the emulator for a Debian architecture; None if this machine needs no emulator.

    Raises:
        TargetError: the emulator is missing and cannot be downloaded.
    """
    if platform.machine() in _NATIVE_MACHINES.get(architecture, ()):
        return None
    program = PROGRAMS[architecture]
    for name in (program, f"{program}-static"):
        path = shutil.which(name)
        if path is not None and version(Path(path)) >= MIN_VERSION and _is_static(Path(path)):
            return Path(path)
    cached = cache / "qemu" / program
    with Lock(cached, wait=True):
        if not cached.is_file():
            _download(program, cached)
    if version(cached) < MIN_VERSION:
        raise TargetError(
            f"{cached} is QEMU {version(cached)}, expected {MIN_VERSION} or newer: delete it and try again"
        )
    return cached


def version(program: Path) -> int:
    """Return the major version of an emulator, or 0 if it cannot be determined."""
    done = call([program, "--version"], timeout_s=30)
    match = re.search(r"version (\d+)\.", done.stdout)
    return int(match[1]) if match and not done.code else 0


def _download(program: str, path: Path) -> None:
    """Extract the program from Debian's package for this machine's architecture."""
    architecture = checked(
        [need("dpkg", "dpkg"), "--print-architecture"], "finding the architecture", timeout_s=30
    ).strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, apt(RELEASE, architecture) as packages:
        unpack(packages.download("qemu-user"), packages.folder / "single", f"./usr/bin/{program}")
        shutil.copyfile(packages.folder / "single" / "usr" / "bin" / program, partial)
        partial.chmod(0o755)
        if not _is_static(partial):
            raise TargetError(
                f"Debian's {program} is not linked statically: install qemu-user-static {MIN_VERSION} or newer"
            )
    path.chmod(0o755)


def _is_static(program: Path) -> bool:
    """Return whether the program is linked statically, because only such a program runs in another root folder."""
    content = program.read_bytes()
    return content[:4] == b"\x7fELF" and b"/ld-linux" not in content[:4096]
