"""A bundle's requirements as wheels for the device, fetched by this machine's pip."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgerec._version import __version__
from edgerec.emulation.root import GLIBC, Root
from edgerec.errors import BundleError, TargetError
from edgerec.export.wheel import edgerec_wheel
from edgerec.utils.atomic import replacing_folder, sha256
from edgerec.utils.child_process import python_command
from edgerec.utils.lock import Lock
from edgerec.utils.subprocesses import ProgramResult, call

log = logging.getLogger(__name__)

INSTALL_TIMEOUT_S = 1200
INDEX_TIMEOUT_S = 60
# As platform.machine and the wheels name Debian's architectures.
MACHINES = {"arm64": "aarch64", "armhf": "armv7l"}
# Where to look for wheels when there is none for the Python in question.
_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

_VERSION = r"(==|>=|<=|~=|!=|<|>)\s*[A-Za-z0-9.*+!_-]+"
_REQUIREMENT = re.compile(
    rf"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[A-Za-z0-9, _-]*\])?\s*({_VERSION}(\s*,\s*{_VERSION})*)?"
)
# pip judges markers (platform_machine, python_version) on the machine where it runs: it is told of the device's.
_PIP_OF_THE_DEVICE = """
import platform, runpy, sys
machine, version = sys.argv.pop(1), sys.argv.pop(1)
platform.machine = lambda: machine
platform.python_version = lambda: version + ".0"
platform.python_version_tuple = lambda: (*version.split("."), "0")
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def check_requirements(text: str, allowed: Sequence[str], where: str) -> None:
    """Refuse everything in a bundle's requirements.txt but versions of the packages that its target names.

    A line may otherwise name an index, a file, or a program of somebody.

    Raises:
        BundleError: with the first such line.
    """
    names = {name_of(line) for line in allowed}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not _REQUIREMENT.fullmatch(line.strip()) or name_of(line) not in names:
            raise BundleError(
                f"{where}: {line.strip()!r} is not taken, expected versions of {', '.join(sorted(names))}: "
                "export the bundle again"
            )


def name_of(requirement: str) -> str:
    """A requirement's package, as indexes write it."""
    found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else ""


def own_wheel(requirements: str, cache: Path, bundled: Mapping[str, bytes]) -> Path | None:
    """Return the path of the edgerec wheel to install, or None if pip has to find the required version elsewhere.

    Args:
        requirements: text of a requirements.txt.
        cache: folder in which the wheel is stored.
        bundled: wheels of the bundle. If empty, and the running edgerec has the required version, a wheel of the
            running edgerec is built.
    """
    if f"=={__version__}" in requirements.replace(" ", ""):
        bundled = dict([edgerec_wheel()]) | dict(bundled)
    own = {Path(name).name: content for name, content in bundled.items() if Path(name).name.startswith("edgerec-")}
    if not own:
        return None
    name, content = sorted(own.items())[-1]
    folder = cache / "edgerec" / sha256(content)[:16]
    with Lock(folder, wait=True):
        if not folder.is_dir():
            with replacing_folder(folder) as partial:
                (partial / name).write_bytes(content)
    return folder / name


def find_site(requirements: str, root: Root, wheel: Path | None, find_links: str) -> Path:
    """The folder in ``root`` with what requirements.txt asks for, installed where it is not there yet.

    Args:
        requirements: the file's text, checked.
        root: decides the Python and the processor.
        wheel: edgerec's own.
        find_links: a folder or address with more wheels, as pip's option; or empty.

    Raises:
        TargetError: pip fails; where no wheel fits, with the versions that there are.
    """
    asks = _metadata(wheel) if wheel else b""
    key = sha256(f"{requirements}\0{find_links}\0".encode() + asks)[:16]
    folder = root.folder / "opt" / f"site-{key}"
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info("installing wheels for Debian %s on %s, once", root.release, MACHINES[root.architecture])
            links = [str(wheel.parent)] if wheel else []
            with replacing_folder(folder) as partial, tempfile.TemporaryDirectory(prefix="edgerec-wheels-") as extra:
                _install(requirements, root, partial, [*links, *([find_links] if find_links else [])], Path(extra))
    return folder


def _install(requirements: str, root: Root, folder: Path, links: Sequence[str], extra: Path) -> None:
    debians = stand_ins(root, extra)
    (extra / "requirements.txt").write_text(requirements)
    command = [
        *device_pip(root),
        *("install", "--no-compile", "--quiet", "--target", str(folder)),
        *wheel_options(root, root.python),
        *(part for link in (*links, str(extra)) for part in ("--find-links", link)),
        *("--requirement", str(extra / "requirements.txt")),
    ]
    done = call(command, timeout_s=INSTALL_TIMEOUT_S)
    if done.code:
        raise TargetError(_why(done, root))
    for name in debians:
        shutil.rmtree(folder / name, ignore_errors=True)


def unpacked(wheel: Path, folder: Path) -> None:
    """Our own wheel's files in ``folder``, which pip's would be too, without asking pip."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def _metadata(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))


def stand_ins(root: Root, folder: Path) -> list[str]:
    """Empty wheels for the Python packages that Debian brings: pip sees them as the device's pip would.

    Gives what is to be removed of them where they were installed.
    """
    made = []
    place = root.folder / "usr" / "lib" / "python3" / "dist-packages"
    for found in importlib.metadata.distributions(path=[str(place)]):
        if not found.name or not re.fullmatch(r"[0-9][0-9A-Za-z.+!]*", found.version or ""):
            continue
        stem = f"{re.sub(r'[-_.]+', '_', found.name)}-{found.version}"
        info = f"{stem}.dist-info"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
            metadata = f"Metadata-Version: 2.1\nName: {found.name}\nVersion: {found.version}\n"
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        made.append(info)
    return made


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise TargetError(
            f"pip is missing in this environment, which fetches the wheels: {sys.executable} -m ensurepip"
        )
    return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]


def device_pip(root: Root) -> list[str]:
    """The command of a pip of this machine that judges as the device's would."""
    _pip()
    machine = MACHINES[root.architecture]
    return [*python_command(_PIP_OF_THE_DEVICE, machine, root.python), "--disable-pip-version-check", "--no-input"]


def wheel_options(root: Root, python: str) -> list[str]:
    """pip's options for wheels that run there: those for its C library and all that are older."""
    machine = MACHINES[root.architecture]
    names = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC[root.release], 16, -1)]
    names += [f"manylinux2014_{machine}", f"linux_{machine}"]
    return ["--only-binary=:all:", "--python-version", python, *(f"--platform={name}" for name in names)]


def _why(done: ProgramResult, root: Root) -> str:
    """pip's failure in one line; where there is no wheel, which there are."""
    machine = MACHINES[root.architecture]
    missing = re.search(r"No matching distribution found for (\S+)", done.stderr)
    if missing is None:
        return f"pip cannot install the requirements for Python {root.python} on {machine}: {done.last_line}"
    name, there = name_of(missing[1]), []
    for python in _PYTHONS:
        command = [*device_pip(root), "index", "versions", name, *wheel_options(root, python)]
        if found := re.search(r"Available versions: (.+)", call(command, timeout_s=INDEX_TIMEOUT_S).stdout):
            there.append(f"Python {python}: {', '.join(found[1].split(', ')[:3])}")
    wheel = f"no wheel of {missing[1]} for Python {root.python} on {machine} (Debian {root.release})"
    if name == "edgerec":
        return f"{wheel}: build one (python -m build) and name its folder with --find-links"
    return f"{wheel}; there are {'; '.join(there) if there else 'none for any Python'}"
