"""A root folder of Debian for a device's processor, built once, and programs inside it."""

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

# What Raspberry Pi OS Lite has of what Python and wheels need, and no more: what is missing here may be missing there.
PACKAGES = ("base-files", "ca-certificates", "libstdc++6", "python3", "zlib1g")
# Debian's own versions of Python.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
GLIBC = {"bookworm": 36, "trixie": 41}
# Links that the packages' scripts would make, which nobody runs here.
_ALTERNATIVES = {"blas/libblas.so.3": "libblas.so.3", "lapack/liblapack.so.3": "liblapack.so.3"}
# A Raspberry Pi has four cores. XNNPACK reads these files, and does without its fast kernels where they are not there.
_FILES = {"sys/devices/system/cpu/possible": "0-3\n", "sys/devices/system/cpu/present": "0-3\n"}


@dataclass(frozen=True)
class Root:
    """A root folder of a Debian release.

    Attributes:
        folder: where it is.
        release, architecture: as Debian names them.
        qemu: the emulator; None where this machine is one of that kind.
    """

    folder: Path
    release: str
    architecture: str
    qemu: Path | None

    @property
    def python(self) -> str:
        """The version of its Python, as ``3.11``."""
        return PYTHONS[self.release]

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder in it for one proof, under ``/tmp`` there; removed when the block ends."""
        place = Path(tempfile.mkdtemp(prefix="proof-", dir=self.folder / "tmp"))
        try:
            if self.qemu is not None:
                shutil.copy2(self.qemu, place / self.qemu.name)
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def inside(self, path: Path) -> str:
        """How a path in the folder is called inside it."""
        return f"/{path.relative_to(self.folder)}"

    def call(
        self,
        place: Path,
        command: Sequence[str],
        *,
        processor: str,
        path: Sequence[Path] = (),
        settings: Sequence[str] = (),
        timeout_s: float,
    ) -> ProgramResult:
        """Run a program of the userland with ``place`` as its folder.

        Args:
            place: what :meth:`workplace` gave.
            command: paths as inside.
            processor: as qemu names it; without qemu this machine's own runs it.
            path: folders of Python packages.
            settings: more of its environment, ``NAME=value``; only under qemu, which keeps it from this machine's
                programs.
            timeout_s: after which it is stopped.
        """
        emulator = [] if self.qemu is None else [self.inside(place / self.qemu.name), "-cpu", processor]
        emulator += [part for setting in settings for part in ("-E", setting)] if emulator else []
        environment = {
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(self.inside(folder) for folder in path),
            "PYTHONNOUSERSITE": "1",
        }
        enter = [*entering(), f"--root={self.folder}", f"--wd={self.inside(place)}", "--"]
        return call([*enter, *emulator, *command], timeout_s=timeout_s, env=environment)


def entering() -> list[str]:
    """The command that makes another folder the root: as root as it is, else in a user namespace.

    Raises:
        TargetError: neither is allowed, or this is no Linux.
    """
    if platform.system() != "Linux":
        raise TargetError(f"the proof on a device's userland needs Linux, this is {platform.system()}: use a container")
    unshare = need("unshare", "util-linux")
    if os.geteuid() == 0:
        enter = [unshare]
        done = call([unshare, "--root=/", "true"], timeout_s=30)
        allow = "allow it (chroot: CAP_SYS_CHROOT)"
    else:
        enter = [unshare, "--map-root-user"]
        done = call([*enter, "--root=/", "true"], timeout_s=30)
        allow = (
            "run it as root, or allow them: sysctl -w kernel.unprivileged_userns_clone=1 "
            "(Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    if done.code:
        raise TargetError(f"the proof on a device's userland needs root or user namespaces ({done.last_line}): {allow}")
    return enter


def find_root(release: str, architecture: str, packages: Sequence[str], qemu: Path | None, cache: Path) -> Root:
    """The root folder with :data:`PACKAGES` and ``packages``; built where the cache has none.

    Raises:
        TargetError: it cannot be built.
    """
    wanted = sorted({*PACKAGES, *packages})
    made_of = sha256(repr((wanted, sorted(_ALTERNATIVES), sorted(_FILES.items()))).encode())[:12]
    folder = cache / f"{release}-{architecture}-{made_of}"
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info("building Debian %s for %s, once: %s", release, architecture, folder)
            with replacing_folder(folder) as partial, apt(release, architecture) as debian:
                _fill(partial, debian.with_dependencies(wanted))
    return Root(folder, release, architecture, qemu)


def _fill(root: Path, packages: Sequence[Path]) -> None:
    for name in ("bin", "lib", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        unpack(package, root)
    for library, link in _ALTERNATIVES.items():
        for found in (root / "usr" / "lib").glob(f"*/{library}"):
            (found.parent.parent / link).symlink_to(library)
    for name, content in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
