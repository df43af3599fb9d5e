"""A target's userlands, ready to run Python in: root folder, emulator, packages."""

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
from edgerec.emulation.root import PYTHONS, Root, entering, find_root
from edgerec.emulation.wheels import MACHINES, find_site, own_wheel, unpacked
from edgerec.errors import TargetError
from edgerec.utils.atomic import cache_folder
from edgerec.utils.progress import Listener, Progress
from edgerec.utils.subprocesses import ProgramResult

RUN_TIMEOUT_S = 1800
# The processors of the boards: Raspberry Pi 4 and 5; Raspberry Pi 2, whose instructions all 32-bit ones have.
PROCESSORS = {"arm64": ("cortex-a72", "cortex-a76"), "armhf": ("cortex-a7",)}
NATIVE = "this machine"


@dataclass(frozen=True)
class Place:
    """A folder inside a userland for one run, removed after it.

    Attributes:
        folder: where it is on this machine.
        inside: how it is called there.
    """

    root: Root
    folder: Path
    inside: str
    packages: tuple[Path, ...]
    processor: str

    def run(self, script: Path, job: Mapping[str, Any]) -> tuple[ProgramResult, Any]:
        """Run a script there that reads job.json and writes result.json in the folder that it is given.

        Gives how it ended, and the result's JSON values, None where it wrote none.
        """
        shutil.copyfile(script, self.folder / script.name)
        (self.folder / "job.json").write_text(json.dumps(job))
        done = self.call(["/usr/bin/python3", f"{self.inside}/{script.name}", self.inside])
        result = self.folder / "result.json"
        return done, json.loads(result.read_text()) if not done.code and result.is_file() else None

    def call(
        self, command: Sequence[str], settings: Sequence[str] = (), timeout_s: float = RUN_TIMEOUT_S
    ) -> ProgramResult:
        """Run a program there; paths as inside, ``settings`` as of :meth:`Root.call`."""
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
    """A Debian release with what a bundle requires.

    Attributes:
        root: Debian.
        site: the packages, in it.
        wheel: of the edgerec that runs here, where its version is the one in question.
    """

    root: Root
    site: Path
    wheel: Path | None

    @property
    def machine(self) -> str:
        """As ``platform.machine`` gives it there."""
        return MACHINES[self.root.architecture]

    @cached_property
    def site_bytes(self) -> int:
        """What the packages take, without what Python compiles of them."""
        return sum(file.stat().st_size for file in self.site.rglob("*") if file.suffix != ".pyc" and file.is_file())

    @contextmanager
    def place(self, processor: str) -> Iterator[Place]:
        """Somewhere to run as ``processor``."""
        with self.root.workplace() as folder:
            packages = [self.site]
            if self.wheel is not None:
                unpacked(self.wheel, folder / "edgerec")
                packages.insert(0, folder / "edgerec")
            yield Place(self.root, folder, self.root.inside(folder), tuple(packages), processor)


def userlands(
    aim: Target,
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
        aim: a target that runs Debian on ARM.
        requirements: content of a requirements.txt, already validated.
        releases: Debian releases; if empty, all releases of the target.
        processors: QEMU names of CPUs; if empty, the CPUs of the target's boards.
        find_links: value of pip's ``--find-links``; or empty.
        wheels: contents of the bundle's own wheels by name.
        listener: receives the progress.

    Raises:
        TargetError: the target has no such userland, or the userland cannot be built on this machine.
    """
    architecture, wanted = _chosen(aim, releases)
    entering()
    cache = cache_folder() / "userland"
    links = str(Path(find_links).resolve()) if find_links and Path(find_links).exists() else find_links
    listener(Progress("userland", 0, 1, "emulator"))
    qemu = find_qemu(architecture, cache)
    cores = (NATIVE,) if qemu is None else tuple(processors) or PROCESSORS[architecture]
    wheel = own_wheel(requirements, cache, wheels)
    done, total = 0, len(wanted) * (2 + len(cores))
    for release in wanted:
        listener(Progress("userland", done, total, f"Debian {release}"))
        root = find_root(release, architecture, _debians_python(aim), qemu, cache)
        listener(Progress("userland", done + 1, total, f"Debian {release}, wheels"))
        userland = Userland(root, find_site(requirements, root, wheel, links), wheel)
        for processor in cores:
            listener(Progress("userland", done + 2, total, f"Debian {release}, {processor}"))
            yield userland, processor
            done += 1
        done += 2
    listener(Progress("userland", total, total))


def _chosen(aim: Target, releases: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Debian's name of the target's processor, and the releases that have its versions of Python."""
    architectures = {machine: name for name, machine in MACHINES.items()}
    there = tuple(release for release, python in PYTHONS.items() if python in aim.python)
    if aim.kind != "bundle" or len(aim.arch) != 1 or aim.arch[0] not in architectures or not there:
        ready = [name for name in target_names() if name.startswith("rpi")]
        raise TargetError(
            f"there is no userland for target {aim.name}, expected one of Debian on ARM: {' or '.join(ready)}"
        )
    if strange := [release for release in releases if release not in there]:
        raise TargetError(f"target {aim.name} has no Debian {strange[0]}, expected {' or '.join(there)}")
    return architectures[aim.arch[0]], tuple(releases) or there


def _debians_python(aim: Target) -> list[str]:
    """Python packages that the target takes from Debian and not from wheels."""
    return [name for name in aim.system_packages if name.startswith("python3-") and name != "python3-venv"]
