"""Find QEMU's user-mode emulator on this machine, or download it from Debian if it is missing or too old."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from pathlib import Path

from edgerec.emulation.debian import call, unpack_packages
from edgerec.errors import TargetError
from edgerec.utils.atomic import replacing
from edgerec.utils.lock import Lock

# Older major versions of QEMU, e.g. 7, silently compute wrong results in XNNPACK.
MIN_VERSION = 10
# The static QEMU build of this Debian release also runs on other distributions.
RELEASE = "trixie"
PROGRAMS = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
# QEMU can be downloaded for these values of ``platform.machine()``.
_HOSTS = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def find_qemu(architecture: str, cache: Path) -> Path | None:
    """Return the path of the emulator for a Debian architecture, or None if this machine does not need one.

    Raises:
        TargetError: the emulator is missing and cannot be downloaded.
    """
    host = _HOSTS.get(platform.machine())
    if architecture == host:
        return None
    program = PROGRAMS[architecture]
    for name in (program, f"{program}-static"):
        path = shutil.which(name)
        if path is not None and version(Path(path)) >= MIN_VERSION and _is_static(Path(path)):
            return Path(path)
    cached = cache / "qemu" / program
    with Lock(cached, wait=True):
        if not cached.is_file():
            if host is None:
                raise TargetError(
                    f"{program} is not installed, and Debian does not provide it for {platform.machine()}: install a "
                    f"statically linked {program}, version {MIN_VERSION} or newer"
                )
            _download(program, host, cached)
    if version(cached) < MIN_VERSION:
        raise TargetError(
            f"expected QEMU {MIN_VERSION} or newer, but {cached} is version {version(cached)}: delete this file and "
            "try again"
        )
    return cached


def version(program: Path) -> int:
    """Return an emulator's major version, or 0 if it cannot be determined."""
    done = call([program, "--version"], timeout_s=30)
    match = re.search(r"version (\d+)\.", done.stdout)
    return int(match[1]) if match and not done.code else 0


def _download(program: str, host: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgerec-qemu-") as folder, replacing(path) as partial:
        unpack_packages(RELEASE, host, ["qemu-user"], Path(folder))
        shutil.copyfile(Path(folder) / "usr" / "bin" / program, partial)
        if not _is_static(partial):
            raise TargetError(
                f"Debian's {program} is not statically linked: install qemu-user-static {MIN_VERSION} or newer"
            )
    path.chmod(0o755)


def _is_static(program: Path) -> bool:
    """Return whether a program is statically linked, which is required for running it in a chroot."""
    content = program.read_bytes()
    return content[:4] == b"\x7fELF" and b"/ld-linux" not in content[:4096]
