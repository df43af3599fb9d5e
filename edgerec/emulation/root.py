"""Create a Debian root folder for another architecture, and run programs in it."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgerec.emulation.debian import apt, unpack
from edgerec.emulation.tools import need
from edgerec.errors import TargetError
from edgerec.utils.atomic import replacing_folder, sha256
from edgerec.utils.lock import Lock
from edgerec.utils.subprocesses import ProgramResult, call

log = logging.getLogger(__name__)

# Packages that Python and wheels need. Only packages of Raspberry Pi OS Lite are listed, so that libraries that are
# missing on a device are missing here too.
PACKAGES = ("base-files", "ca-certificates", "libstdc++6", "python3", "zlib1g")
# Version of Python in each Debian release.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
GLIBC = {"bookworm": 36, "trixie": 41}
# Links that the installation scripts of the packages would create. The scripts are not run here.
_ALTERNATIVES = {"blas/libblas.so.3": "libblas.so.3", "lapack/liblapack.so.3": "liblapack.so.3"}
# A Raspberry Pi has four cores. XNNPACK reads these files, and uses slower kernels if they are missing.
_FILES = {"sys/devices/system/cpu/possible": "0-3\n", "sys/devices/system/cpu/present": "0-3\n"}


@dataclass(frozen=True)
class Root:
    """A root folder of a Debian release.

    Attributes:
        folder: path of the root folder.
        release: name of the Debian release.
        architecture: Debian's name of the architecture.
        qemu: path of the emulator; None if this machine needs no emulator.
    """

    folder: Path
    release: str
    architecture: str
    qemu: Path | None

    @property
    def python(self) -> str:
        """Return the version of Python in this release, such as ``3.11``."""
        return PYTHONS[self.release]

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """Create a folder in the root's ``/tmp``, and remove it at the end of the block."""
        folder = Path(tempfile.mkdtemp(prefix="proof-", dir=self.folder / "tmp"))
        try:
            if self.qemu is not None:
                shutil.copy2(self.qemu, folder / self.qemu.name)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def inside(self, path: Path) -> str:
        """Return a path in the root folder as programs inside the root see it."""
        return f"/{path.relative_to(self.folder)}"

    def call(
        self,
        work_folder: Path,
        command: Sequence[str],
        *,
        processor: str,
        path: Sequence[Path] = (),
        settings: Sequence[str] = (),
        timeout_s: float,
    ) -> ProgramResult:
        """Run a program inside the root folder.

        Args:
            work_folder: current folder of the program, created by :meth:`work_folder`.
            command: program and arguments, with paths as inside the root.
            processor: QEMU's name of the CPU to emulate; ignored without an emulator.
            path: folders of Python packages.
            settings: additional environment variables, ``NAME=value``. They are ignored without an emulator, because
                they would affect programs of this machine.
            timeout_s: time in seconds after which the program is stopped.
        """
        emulator = [] if self.qemu is None else [self.inside(work_folder / self.qemu.name), "-cpu", processor]
        emulator += [part for setting in settings for part in ("-E", setting)] if emulator else []
        environment = {
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(self.inside(folder) for folder in path),
            "PYTHONNOUSERSITE": "1",
        }
        enter = [*chroot_command(), f"--root={self.folder}", f"--wd={self.inside(work_folder)}", "--"]
        return call([*enter, *emulator, *command], timeout_s=timeout_s, env=environment)


def chroot_command() -> list[str]:
    """Return the command that runs a program with another root folder. Users other than root need a user namespace.

    Raises:
        TargetError: neither is allowed, or this system is not Linux.
    """
    if platform.system() != "Linux":
        raise TargetError(
            f"--on needs Linux to emulate a device, but this system is {platform.system()}: use a Linux container"
        )
    unshare = need("unshare", "util-linux")
    if os.geteuid() == 0:
        enter = [unshare]
        done = call([unshare, "--root=/", "true"], timeout_s=30)
        allow = "allow chroot (CAP_SYS_CHROOT)"
    else:
        enter = [unshare, "--map-root-user"]
        done = call([*enter, "--root=/", "true"], timeout_s=30)
        allow = (
            "run it as root, or allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1 "
            "(Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    if done.code:
        raise TargetError(f"--on needs root or user namespaces to emulate a device ({done.last_line}): {allow}")
    return enter


def find_root(release: str, architecture: str, packages: Sequence[str], qemu: Path | None, cache: Path) -> Root:
    """Return the root folder with :data:`PACKAGES` and ``packages``; create it if the cache does not contain it.

    Raises:
        TargetError: the root folder cannot be created.
    """
    all_packages = sorted({*PACKAGES, *packages})
    content_digest = sha256(repr((all_packages, sorted(_ALTERNATIVES), sorted(_FILES.items()))).encode())[:12]
    folder = cache / f"{release}-{architecture}-{content_digest}"
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info("installing Debian %s for %s in %s; this is done only once", release, architecture, folder)
            with replacing_folder(folder) as partial, apt(release, architecture) as debian:
                _fill(partial, debian.download_all(all_packages))
    return Root(folder, release, architecture, qemu)


def _fill(root: Path, packages: Sequence[Path]) -> None:
    """Unpack the packages, and create the links and files that programs expect."""
    for name in ("bin", "lib", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        unpack(package, root)
    for library, link in _ALTERNATIVES.items():
        for path in (root / "usr" / "lib").glob(f"*/{library}"):
            (path.parent.parent / link).symlink_to(library)
    for name, content in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
