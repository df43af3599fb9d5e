"""Install the userlands of a target (root folder, emulator and Python packages), and run Python in them."""

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
from edgerec.emulation.qemu import find_qemu
from edgerec.emulation.root import PYTHONS, Root, chroot_command, find_root
from edgerec.emulation.wheels import MACHINES, find_site, own_wheel, unpack_wheel
from edgerec.errors import TargetError
from edgerec.utils.atomic import cache_folder
from edgerec.utils.progress import Listener, Progress
from edgerec.utils.subprocesses import ProgramResult

RUN_TIMEOUT_S = 1800
# CPUs of the Raspberry Pi 4 and 5, and of the Raspberry Pi 2, whose instruction set all 32-bit boards support.
PROCESSORS = {"arm64": ("cortex-a72", "cortex-a76"), "armhf": ("cortex-a7",)}
NATIVE = "this machine"


@dataclass(frozen=True)
class WorkFolder:
    """A temporary folder inside a userland, in which programs can be run.

    Attributes:
        root: root folder of the userland.
        folder: path on this machine.
        inside: path as programs inside the userland see it.
        packages: folders of Python packages.
        processor: QEMU's name of the CPU.
    """

    root: Root
    folder: Path
    inside: str
    packages: tuple[Path, ...]
    processor: str

    def run(self, script: Path, job: Mapping[str, Any]) -> tuple[ProgramResult, Any]:
        """Run a Python script that reads job.json and writes result.json in the folder of its first argument.

        Returns:
            The exit code and output of the script, and the content of result.json; None if the script failed.
        """
        shutil.copyfile(script, self.folder / script.name)
        (self.folder / "job.json").write_text(json.dumps(job))
        done = self.call(["/usr/bin/python3", f"{self.inside}/{script.name}", self.inside])
        result = self.folder / "result.json"
        return done, json.loads(result.read_text()) if not done.code and result.is_file() else None

    def call(
        self, command: Sequence[str], settings: Sequence[str] = (), timeout_s: float = RUN_TIMEOUT_S
    ) -> ProgramResult:
        """Run a program inside the userland; see :meth:`Root.call` for the arguments."""
        return self.root.call(
            self.folder,
            command,
            processor=self.processor,
            path=self.packages,
            settings=settings,
            timeout_s=timeout_s,
        )


@dataclass(frozen=True)
class Userland:
    """A Debian release with the Python packages that a bundle requires.

    Attributes:
        root: root folder.
        site: folder of the Python packages, inside the root folder.
        wheel: wheel of edgerec that is used instead of the one in ``site``; None uses the one in ``site``.
    """

    root: Root
    site: Path
    wheel: Path | None

    @property
    def machine(self) -> str:
        """Return the value of ``platform.machine()`` in the userland."""
        return MACHINES[self.root.architecture]

    @cached_property
    def site_bytes(self) -> int:
        """Return the size of the Python packages, without compiled .pyc files."""
        return sum(file.stat().st_size for file in self.site.rglob("*") if file.suffix != ".pyc" and file.is_file())

    @contextmanager
    def work_folder(self, processor: str) -> Iterator[WorkFolder]:
        """Create a folder to run programs with this CPU, and remove it at the end of the block."""
        with self.root.work_folder() as folder:
            packages = [self.site]
            if self.wheel is not None:
                unpack_wheel(self.wheel, folder / "edgerec")
                packages.insert(0, folder / "edgerec")
            yield WorkFolder(self.root, folder, self.root.inside(folder), tuple(packages), processor)


def userlands(
    target: Target,
    requirements: str,
    *,
    releases: Sequence[str] = (),
    processors: Sequence[str] = (),
    find_links: str = "",
    wheels: Mapping[str, bytes] = MappingProxyType({}),
    listener: Listener,
) -> Iterator[tuple[Userland, str]]:
    """Yield a userland for each Debian release of a target and each CPU; build those that the cache lacks.

    Args:
        target: a target that runs Debian on ARM.
        requirements: content of a requirements.txt, already validated.
        releases: Debian releases; if empty, all releases of the target.
        processors: QEMU names of CPUs; if empty, the CPUs of the target's boards.
        find_links: value of pip's ``--find-links``; or empty.
        wheels: contents of the bundle's own wheels by name.
        listener: receives the progress.

    Raises:
        TargetError: the target has no such userland, or the userland cannot be built on this machine.
    """
    architecture, chosen_releases = _choose(target, releases)
    chroot_command()  # fail before anything is downloaded
    cache = cache_folder() / "userland"
    links = str(Path(find_links).resolve()) if find_links and Path(find_links).exists() else find_links
    listener(Progress("userland", 0, 1, "emulator"))
    qemu = find_qemu(architecture, cache)
    cores = (NATIVE,) if qemu is None else tuple(processors) or PROCESSORS[architecture]
    wheel = own_wheel(requirements, cache, wheels)
    done, total = 0, len(chosen_releases) * (2 + len(cores))
    for release in chosen_releases:
        listener(Progress("userland", done, total, f"Debian {release}"))
        root = find_root(release, architecture, _debian_python_packages(target), qemu, cache)
        listener(Progress("userland", done + 1, total, f"Debian {release}, wheels"))
        userland = Userland(root, find_site(requirements, root, wheel, links), wheel)
        for processor in cores:
            listener(Progress("userland", done + 2, total, f"Debian {release}, {processor}"))
            yield userland, processor
            done += 1
        done += 2
    listener(Progress("userland", total, total))


def _choose(target: Target, releases: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return Debian's name of the target's architecture, and the Debian releases that suit the target."""
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
    """Return the Python packages that the target installs from Debian instead of wheels."""
    return [name for name in target.system_packages if name.startswith("python3-") and name != "python3-venv"]
