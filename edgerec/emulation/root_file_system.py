"""Create a Debian root file system for another architecture, and run programs in it."""

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

from edgerec.emulation.debian import call, require_program, unpack_packages
from edgerec.errors import TargetError
from edgerec.utils.atomic import replacing_folder, sha256
from edgerec.utils.child_process import Outcome
from edgerec.utils.lock import Lock

log = logging.getLogger(__name__)

# Packages that Python and wheels need. Only packages of Raspberry Pi OS Lite are listed, so that libraries that are
# missing on a device are missing here too.
PACKAGES = ("base-files", "ca-certificates", "libstdc++6", "python3", "zlib1g")
# Version of Python in each Debian release.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
# glibc version in each Debian release: 36 means 2.36.
GLIBC = {"bookworm": 36, "trixie": 41}
# Symbolic links that the packages' installation scripts would create. These scripts are not run.
_ALTERNATIVES = {"blas/libblas.so.3": "libblas.so.3", "lapack/liblapack.so.3": "liblapack.so.3"}
# Without these CPU topology files, XNNPACK uses slower kernels. A Raspberry Pi has four cores.
_FILES = {"sys/devices/system/cpu/possible": "0-3\n", "sys/devices/system/cpu/present": "0-3\n"}


@dataclass(frozen=True)
class RootFileSystem:
    """Root file system of a Debian release.

    Attributes:
        folder: path of the root folder on this machine.
        release: codename of the Debian release.
        architecture: Debian's name of the architecture.
        qemu: path of the emulator, or None if this machine needs no emulator.
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
        """Context manager that creates a folder in ``/tmp`` of the root file system, and removes it on exit."""
        folder = Path(tempfile.mkdtemp(prefix="verify-", dir=self.folder / "tmp"))
        try:
            if self.qemu is not None:
                shutil.copy2(self.qemu, folder / self.qemu.name)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def inside(self, path: Path) -> str:
        """Convert a path on this machine to the path inside the root file system."""
        return f"/{path.relative_to(self.folder)}"

    def call(
        self,
        work_folder: Path,
        command: Sequence[str],
        *,
        cpu: str,
        packages: Sequence[Path] = (),
        environment: Sequence[str] = (),
        timeout_s: float,
    ) -> Outcome:
        """Run a program in the root file system (chroot).

        Args:
            work_folder: current folder of the program, created by :meth:`work_folder`.
            command: program and arguments, with paths inside the root file system.
            cpu: QEMU's name of the CPU to emulate. It is ignored if no emulator is needed.
            packages: folders of Python packages.
            environment: additional environment variables, ``NAME=value``. They are ignored if no emulator is needed,
                because they would affect programs of this machine.
            timeout_s: time in seconds after which the program is stopped.
        """
        emulator: list[str] = []
        if self.qemu is not None:
            variables = [part for variable in environment for part in ("-E", variable)]
            emulator = [self.inside(work_folder / self.qemu.name), "-cpu", cpu, *variables]
        chroot = [*chroot_command(), f"--root={self.folder}", f"--wd={self.inside(work_folder)}", "--"]
        variables_of_chroot = {
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(self.inside(folder) for folder in packages),
            "PYTHONNOUSERSITE": "1",
        }
        return call([*chroot, *emulator, *command], timeout_s=timeout_s, env=variables_of_chroot)


def chroot_command() -> list[str]:
    """Return the command that runs a program in a chroot, in a new user namespace if this process does not run as root.

    Raises:
        TargetError: chroot and user namespaces are not permitted, or the system is not Linux.
    """
    if platform.system() != "Linux":
        raise TargetError(
            f"--on needs Linux to emulate a device, but this system is {platform.system()}: use a Linux container"
        )
    is_root = os.geteuid() == 0
    command = [require_program("unshare", "util-linux"), *([] if is_root else ["--map-root-user"])]
    done = call([*command, "--root=/", "true"], timeout_s=30)
    if done.code:
        fix = (
            "allow chroot (CAP_SYS_CHROOT)"
            if is_root
            else "run the command as root, or allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1 "
            "(Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)"
        )
        raise TargetError(f"--on needs root permissions or user namespaces ({done.error_line}): {fix}")
    return command


def find_root(
    release: str, architecture: str, packages: Sequence[str], qemu: Path | None, cache: Path
) -> RootFileSystem:
    """Return a root file system that contains the Debian packages in :data:`PACKAGES` and ``packages``.

    The root file system is created if ``cache`` does not contain it.

    Raises:
        TargetError: the root file system cannot be created.
    """
    all_packages = sorted({*PACKAGES, *packages})
    content_digest = sha256(repr((all_packages, sorted(_ALTERNATIVES), sorted(_FILES.items()))).encode())[:12]
    folder = cache / f"{release}-{architecture}-{content_digest}"
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info("installing Debian %s for %s in %s; this is done only once", release, architecture, folder)
            with replacing_folder(folder) as partial:
                unpack_packages(release, architecture, all_packages, partial)
                _add_links_and_files(partial)
    return RootFileSystem(folder, release, architecture, qemu)


def _add_links_and_files(root: Path) -> None:
    for library, link in _ALTERNATIVES.items():
        for path in (root / "usr" / "lib").glob(f"*/{library}"):
            (path.parent.parent / link).symlink_to(library)
    for name, content in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
