"""Install a target's emulated systems (emulator, root file system and Python packages), and run programs in them."""

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
# CPUs of the Raspberry Pi 4 and 5 (64-bit) and of the Raspberry Pi 2. All 32-bit boards support the instructions of the
# Raspberry Pi 2.
CPUS = {"arm64": ("cortex-a72", "cortex-a76"), "armhf": ("cortex-a7",)}
NATIVE = "this machine"


@dataclass(frozen=True)
class WorkFolder:
    """A temporary folder in an emulated system, in which programs can run.

    Attributes:
        root: root file system of the emulated system.
        folder: path on this machine.
        inside: path inside the root file system.
        packages: folders of Python packages.
        cpu: QEMU's name of the CPU.
    """

    root: RootFileSystem
    folder: Path
    inside: str
    packages: tuple[Path, ...]
    cpu: str

    def run(self, script: Path, job: Mapping[str, Any]) -> tuple[Outcome, Any]:
        """Run a Python script that reads job.json and writes result.json in the folder given as its first argument.

        Returns:
            The exit code and output of the script, and the content of result.json, or None if the script failed.
        """
        shutil.copyfile(script, self.folder / script.name)
        (self.folder / "job.json").write_text(json.dumps(job))
        done = self.call(["/usr/bin/python3", f"{self.inside}/{script.name}", self.inside])
        result = self.folder / "result.json"
        return done, json.loads(result.read_text()) if not done.code and result.is_file() else None

    def call(
        self, command: Sequence[str], environment: Sequence[str] = (), timeout_s: float = RUN_TIMEOUT_S
    ) -> Outcome:
        """Run a program in the emulated system. See :meth:`RootFileSystem.call` for the arguments."""
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
    """An emulated Debian release and CPU, with the Python packages that a bundle requires.

    Attributes:
        root: root file system.
        site: folder of the Python packages, inside the root file system.
        wheel: wheel of edgerec that is used instead of the edgerec in ``site``, or None to use the edgerec in ``site``.
        cpu: QEMU's name of the CPU.
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
        """Return the size of the Python packages, without compiled .pyc files."""
        return sum(file.stat().st_size for file in self.site.rglob("*") if file.suffix != ".pyc" and file.is_file())

    @contextmanager
    def work_folder(self) -> Iterator[WorkFolder]:
        """Context manager that creates a folder in which programs can run, and removes it on exit."""
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
    """Yield an emulated system for each Debian release and CPU of a target. Systems that are not cached are installed.

    Args:
        target: a target that runs Debian on ARM.
        requirements: content of a requirements.txt, already validated.
        releases: codenames of Debian releases; if empty, all releases of the target.
        cpus: QEMU names of CPUs; if empty, the CPUs of the target's boards.
        find_links: value of pip's ``--find-links``, or an empty string.
        wheels: contents of the bundle's own wheels, keyed by file name.
        listener: receives the progress.

    Raises:
        TargetError: the target does not run Debian on ARM, or its system cannot be installed on this machine.
    """
    architecture, chosen_releases = _choose(target, releases)
    chroot_command()  # fail before anything is downloaded
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
    """Return Debian's name of the target's architecture, and the Debian releases that the target supports."""
    architectures = {machine: name for name, machine in MACHINES.items()}
    suitable = tuple(release for release, python in PYTHONS.items() if python in target.python)
    if target.kind != "bundle" or len(target.arch) != 1 or target.arch[0] not in architectures or not suitable:
        choices = [name for name in target_names() if name.startswith("rpi")]
        raise TargetError(
            f"target {target.name} cannot be emulated, because it is not a Debian system on ARM: choose "
            f"{' or '.join(choices)}"
        )
    if unsuitable := [release for release in releases if release not in suitable]:
        raise TargetError(
            f"target {target.name} does not support Debian {unsuitable[0]}: choose {' or '.join(suitable)}"
        )
    return architectures[target.arch[0]], tuple(releases) or suitable


def _debian_python_packages(target: Target) -> list[str]:
    """Return the Python packages that the target installs as Debian packages instead of wheels."""
    return [name for name in target.system_packages if name.startswith("python3-") and name != "python3-venv"]
