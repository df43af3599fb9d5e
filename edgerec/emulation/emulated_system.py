"""Set up emulated systems with QEMU, and run programs in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgerec.contract.target import Target, target_names
from edgerec.emulation.device_wheels import MACHINES, find_site, own_wheel, unpack_wheel
from edgerec.emulation.qemu import find_qemu
from edgerec.emulation.root_file_system import PYTHONS, RootFileSystem, chroot_command, find_root
from edgerec.errors import TargetError
from edgerec.utils.atomic import cache_folder
from edgerec.utils.child_process import Outcome
from edgerec.utils.progress import Listener, Progress

RUN_TIMEOUT_S = 1800
# These are the CPUs of the Raspberry Pi 4 and 5 (64-bit) and the Raspberry Pi 2 (32-bit).
CPUS = {"arm64": ("cortex-a72", "cortex-a76"), "armhf": ("cortex-a7",)}
NATIVE = "this machine"


@dataclass(frozen=True)
class WorkFolder:
    """A temporary working folder for programs in an emulated system.

    Attributes:
        root: the emulated system's root file system.
        folder: path on this machine.
        inside: path inside the root file system.
        packages: folders with Python packages.
        cpu: QEMU's name for the CPU.
    """

    root: RootFileSystem
    folder: Path
    inside: str
    packages: tuple[Path, ...]
    cpu: str

    def run(self, script: Path, job: Mapping[str, Any]) -> tuple[Outcome, Any]:
        """Run a Python script that reads job.json and writes result.json in the folder given as its first argument.

        Returns:
            The script's exit code and output, and the contents of result.json, or None if the script failed.
        """
        shutil.copyfile(script, self.folder / script.name)
        (self.folder / "job.json").write_text(json.dumps(job))
        done = self.call(["/usr/bin/python3", f"{self.inside}/{script.name}", self.inside])
        result = self.folder / "result.json"
        return done, json.loads(result.read_text()) if not done.code and result.is_file() else None

    def call(
        self, command: Sequence[str], environment: Sequence[str] = (), timeout_s: float = RUN_TIMEOUT_S
    ) -> Outcome:
        """Run a program in the emulated system.

        See :meth:`RootFileSystem.call` for the arguments.
        """
        return self.root.call(
            self.folder,
            command,
            cpu=self.cpu,
            packages=self.packages,
            environment=environment,
            timeout_s=timeout_s,
        )


@dataclass(frozen=True)
class EmulatedSystem:
    """An emulated Debian release and CPU, with the Python packages required by a bundle.

    Attributes:
        root: root file system.
        site: folder with the Python packages, inside the root file system.
        wheel: edgerec wheel that takes precedence over the version in ``site``, or None.
        cpu: QEMU's name for the CPU.
    """

    root: RootFileSystem
    site: Path
    wheel: Path | None
    cpu: str

    @property
    def machine(self) -> str:
        """Return the value of ``platform.machine()`` in the emulated system."""
        return MACHINES[self.root.architecture]

    @cached_property
    def site_bytes(self) -> int:
        """Return the total size in bytes of the installed Python packages, excluding .pyc files."""
        return sum(file.stat().st_size for file in self.site.rglob("*") if file.suffix != ".pyc" and file.is_file())

    @contextmanager
    def work_folder(self) -> Iterator[WorkFolder]:
        """Context manager that creates a working folder for programs and removes it on exit."""
        with self.root.work_folder() as folder:
            packages = [self.site]
            if self.wheel is not None:
                unpack_wheel(self.wheel, folder / "edgerec")
                packages.insert(0, folder / "edgerec")
            yield WorkFolder(self.root, folder, self.root.inside(folder), tuple(packages), self.cpu)


def emulated_systems(
    target: Target,
    requirements: str,
    *,
    releases: Sequence[str] = (),
    cpus: Sequence[str] = (),
    find_links: str = "",
    wheels: Mapping[str, bytes] = MappingProxyType({}),
    listener: Listener,
) -> Iterator[EmulatedSystem]:
    """Yield an emulated system for each Debian release and CPU of a target.

    Systems that are not in the cache are installed first.

    Args:
        target: a target that runs Debian on ARM.
        requirements: contents of a validated requirements.txt.
        releases: Debian release codenames; if empty, all releases supported by the target.
        cpus: QEMU's names for the CPUs; if empty, the CPUs of the target's boards.
        find_links: value for pip's ``--find-links``, or an empty string.
        wheels: contents of the bundle's wheels, keyed by file name.
        listener: receives progress updates.

    Raises:
        TargetError: the target does not run Debian on ARM, or its system cannot be installed on this machine.
    """
    architecture, chosen_releases = _choose(target, releases)
    chroot_command()  # missing permissions are reported before the download
    cache = cache_folder() / "userland"
    links = str(Path(find_links).resolve()) if find_links and Path(find_links).exists() else find_links
    listener(Progress("emulated system", 0, 1, "emulator"))
    qemu = find_qemu(architecture, cache)
    chosen_cpus = (NATIVE,) if qemu is None else tuple(cpus) or CPUS[architecture]
    wheel = own_wheel(requirements, cache, wheels)
    done, total = 0, len(chosen_releases) * (2 + len(chosen_cpus))
    for release in chosen_releases:
        listener(Progress("emulated system", done, total, f"Debian {release}"))
        root = find_root(release, architecture, _debian_python_packages(target), qemu, cache)
        listener(Progress("emulated system", done + 1, total, f"Debian {release}, wheels"))
        site = find_site(requirements, root, wheel, links)
        for cpu in chosen_cpus:
            listener(Progress("emulated system", done + 2, total, f"Debian {release}, {cpu}"))
            yield EmulatedSystem(root, site, wheel, cpu)
            done += 1
        done += 2
    listener(Progress("emulated system", total, total))


def _choose(target: Target, releases: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return Debian's name for the target's architecture and the Debian releases to emulate."""
    architectures = {machine: name for name, machine in MACHINES.items()}
    suitable = tuple(release for release, python in PYTHONS.items() if python in target.python)
    if target.kind != "bundle" or len(target.arch) != 1 or target.arch[0] not in architectures or not suitable:
        choices = [name for name in target_names() if name.startswith("rpi")]
        raise TargetError(
            f"cannot emulate target {target.name}, because it does not run Debian on ARM: choose {' or '.join(choices)}"
        )
    if unsuitable := [release for release in releases if release not in suitable]:
        raise TargetError(
            f"target {target.name} does not support Debian {unsuitable[0]}: choose {' or '.join(suitable)}"
        )
    return architectures[target.arch[0]], tuple(releases) or suitable


def _debian_python_packages(target: Target) -> list[str]:
    """Return the Python packages that the target installs as Debian packages rather than wheels."""
    return [name for name in target.system_packages if name.startswith("python3-") and name != "python3-venv"]
