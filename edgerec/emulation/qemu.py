"""The emulator: this machine's own where it is new enough, else the static one out of Debian's package."""

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

# Version 7.2's default processor gives silently wrong XNNPACK results.
OLDEST = 10
# Debian's release that has it; the package needs nothing else of that release, it is linked statically.
RELEASE = "trixie"
PROGRAMS = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
# This machine's names for the processors that it runs without an emulator.
_OWN = {"arm64": ("aarch64", "arm64")}


def find_qemu(architecture: str, cache: Path) -> Path | None:
    """The emulator of Debian's ``architecture``; None on a machine that is one itself.

    Raises:
        TargetError: there is none here, and Debian's cannot be had.
    """
    if platform.machine() in _OWN.get(architecture, ()):
        return None
    program = PROGRAMS[architecture]
    for name in (program, f"{program}-static"):
        found = shutil.which(name)
        if found is not None and version(Path(found)) >= OLDEST and _static(Path(found)):
            return Path(found)
    kept = cache / "qemu" / program
    with Lock(kept, wait=True):
        if not kept.is_file():
            _take(program, kept)
    if version(kept) < OLDEST:
        raise TargetError(f"{kept} is qemu {version(kept)}, expected {OLDEST} or newer: delete it, and try again")
    return kept


def version(program: Path) -> int:
    """The major version of an emulator; 0 where it does not say it."""
    done = call([program, "--version"], timeout_s=30)
    found = re.search(r"version (\d+)\.", done.stdout)
    return int(found[1]) if found and not done.code else 0


def _take(program: str, path: Path) -> None:
    """Out of Debian's package for this machine's processor."""
    own = checked([need("dpkg", "dpkg"), "--print-architecture"], "asking for the architecture", timeout_s=30).strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, apt(RELEASE, own) as packages:
        unpack(packages.alone("qemu-user"), packages.folder / "alone", f"./usr/bin/{program}")
        shutil.copyfile(packages.folder / "alone" / "usr" / "bin" / program, partial)
        partial.chmod(0o755)
        if not _static(partial):
            raise TargetError(
                f"Debian's {program} is not linked statically: install qemu-user-static {OLDEST} or newer"
            )
    path.chmod(0o755)


def _static(program: Path) -> bool:
    """Whether an ELF file asks for no loader: only such a one runs inside another root folder."""
    content = program.read_bytes()
    return content[:4] == b"\x7fELF" and b"/ld-linux" not in content[:4096]
