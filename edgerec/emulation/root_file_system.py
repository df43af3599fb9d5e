"""Create Debian root file systems for other architectures, and run programs in them."""

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

# Only packages of Raspberry Pi OS Lite are installed, because others could hide that a device lacks a library.
PACKAGES = ("base-files", "ca-certificates", "libstdc++6", "python3", "zlib1g")
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
GLIBC_MINOR = {"bookworm": 36, "trixie": 41}
# Installation scripts of packages are not run, so these symbolic links are created explicitly.
_ALTERNATIVES = {"blas/libblas.so.3": "libblas.so.3", "lapack/liblapack.so.3": "liblapack.so.3"}
# XNNPACK uses slower kernels if these CPU topology files are missing.
_FILES = {"sys/devices/system/cpu/possible": "0-3\n", "sys/devices/system/cpu/present": "0-3\n"}


@dataclass(frozen=True)
class RootFileSystem:
    """A Debian release's root file system.

    Attributes:
        folder: path of the root folder on this machine.
        release: Debian release codename.
        architecture: Debian architecture name.
        qemu: path of the emulator, or None if this machine does not need one.
    """

    folder: Path
    release: str
    architecture: str
    qemu: Path | None

    @property
    def python(self) -> str:
        """Return this release's Python version, such as ``3.11``."""
        return PYTHONS[self.release]

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """Context manager that creates a folder in the root file system's ``/tmp`` and removes it on exit."""
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
            work_folder: working folder for the program, created by :meth:`work_folder`.
            command: program and arguments, with paths inside the root file system.
            cpu: QEMU's name for the CPU to emulate. It is ignored if no emulator is required.
            packages: folders with Python packages.
            environment: additional environment variables in the form ``NAME=value``. They are ignored if no emulator is
                required, because they would affect this machine's programs.
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
    """Return a command prefix for running a program in a chroot, within a user namespace if not running as root.

    Raises:
        TargetError: chroot and user namespaces are not permitted, or the system is not Linux.
    """
    if platform.system() != "Linux":
        raise TargetError(f"--on requires Linux, but this system is {platform.system()}: use a Linux container")
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
        raise TargetError(f"--on requires root permissions or user namespaces ({done.error_line}): {fix}")
    return command


def find_root(
    release: str, architecture: str, packages: Sequence[str], qemu: Path | None, cache: Path
) -> RootFileSystem:
    """Return a Debian root file system with the given packages.

    The packages in :data:`PACKAGES` are always included.

    If it is not in the cache, it is created.

    Raises:
        TargetError: the root file system cannot be created.
    """
    all_packages = sorted({*PACKAGES, *packages})
    content_digest = sha256(repr((all_packages, sorted(_ALTERNATIVES), sorted(_FILES.items()))).encode())[:12]
    folder = cache / f"{release}-{architecture}-{content_digest}"
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info("installing Debian %s for %s in %s (only required once)", release, architecture, folder)
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
