"""Install a bundle's requirements for a device's platform with this machine's pip.

pip's ``--platform`` selects wheels for another machine, but environment markers such as ``platform_machine`` are still
evaluated for this machine, and uv's ``--python-platform`` does not support armv7l. Therefore, a few lines of Python run
pip with the device's values (see :func:`device_pip`).
"""

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
from edgerec.emulation.debian import call
from edgerec.emulation.root_file_system import GLIBC_MINOR, RootFileSystem
from edgerec.errors import BundleError, TargetError
from edgerec.export.wheel import edgerec_wheel
from edgerec.utils.atomic import replacing_folder, sha256
from edgerec.utils.child_process import Outcome, python_command
from edgerec.utils.lock import Lock

log = logging.getLogger(__name__)

INSTALL_TIMEOUT_S = 1200
INDEX_TIMEOUT_S = 60
# Wheel file names and ``platform.machine()`` use these names for the Debian architectures.
MACHINES = {"arm64": "aarch64", "armhf": "armv7l"}
# If a wheel is missing for the device's Python version, the error message lists wheels for these versions.
_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

_VERSION = r"(==|>=|<=|~=|!=|<|>)\s*[A-Za-z0-9.*+!_-]+"
_REQUIREMENT = re.compile(
    rf"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[A-Za-z0-9, _-]*\])?\s*({_VERSION}(\s*,\s*{_VERSION})*)?"
)
# This Python code makes pip evaluate environment markers for the device.
_DEVICE_PIP = """
import platform, runpy, sys
machine, version = sys.argv.pop(1), sys.argv.pop(1)
platform.machine = lambda: machine
platform.python_version = lambda: version + ".0"
platform.python_version_tuple = lambda: (*version.split("."), "0")
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def check_requirements(text: str, allowed: Sequence[str], where: str) -> None:
    """Check that a bundle's requirements.txt only contains packages in ``allowed``, in any version.

    Other lines could make pip use a different index, install arbitrary files or execute a program.

    Raises:
        BundleError: a line is not allowed.
    """
    names = {package_name(line) for line in allowed}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not _REQUIREMENT.fullmatch(line.strip()) or package_name(line) not in names:
            raise BundleError(
                f"{where}: the requirement {line.strip()!r} is not allowed; expected only versions of "
                f"{', '.join(sorted(names))}: export the bundle again"
            )


def package_name(requirement: str) -> str:
    """Return a requirement's normalized package name (PEP 503)."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def own_wheel(requirements: str, cache: Path, bundled: Mapping[str, bytes]) -> Path | None:
    """Return the path of the edgerec wheel to install, or None if pip has to download it.

    Args:
        requirements: contents of a requirements.txt.
        cache: folder in which the wheel is stored.
        bundled: the bundle's wheels. If the bundle requires the running version of edgerec, they are not used. Instead,
            a wheel is built from the running version, because the bundle may not be trusted.
    """
    if re.search(rf"^edgerec(\[.*\])?=={re.escape(__version__)}$", requirements.replace(" ", ""), re.MULTILINE):
        bundled = dict([edgerec_wheel()])
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


def wheels_in(find_links: str) -> list[tuple[str, int, int]]:
    """Return the name, the size and the modification time of each wheel in a folder, e.g. to detect new wheels.

    Args:
        find_links: folder or URL as for pip's ``--find-links``. The list is empty if it is not a local folder.
    """
    paths = sorted(path for path in Path(find_links).glob("*.whl") if path.is_file()) if find_links else []
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def find_site(requirements: str, root: RootFileSystem, wheel: Path | None, find_links: str) -> Path:
    """Install the required packages in a root file system if necessary, and return their folder.

    Args:
        requirements: contents of a validated requirements.txt.
        root: root file system, which determines the Python version and the architecture.
        wheel: edgerec's wheel, or None if pip has to download it.
        find_links: folder or URL with additional wheels, as for pip's ``--find-links``, or an empty string.

    Raises:
        TargetError: pip failed. If there is no suitable wheel, the message lists the available versions.
    """
    metadata = _metadata(wheel) if wheel else b""
    key = sha256(f"{requirements}\0{find_links}\0{wheels_in(find_links)}\0".encode() + metadata)[:16]
    folder = root.folder / "opt" / f"site-{key}"
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info(
                "installing wheels for Debian %s on %s (only required once)",
                root.release,
                MACHINES[root.architecture],
            )
            links = [str(wheel.parent)] if wheel else []
            with replacing_folder(folder) as partial, tempfile.TemporaryDirectory(prefix="edgerec-wheels-") as extra:
                _install(requirements, root, partial, [*links, *([find_links] if find_links else [])], Path(extra))
    return folder


def _install(requirements: str, root: RootFileSystem, folder: Path, links: Sequence[str], extra: Path) -> None:
    debian_packages = write_placeholder_wheels(root, extra)
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
        raise TargetError(_explain(done, root))
    for name in debian_packages:
        shutil.rmtree(folder / name, ignore_errors=True)


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel into ``folder``, as pip does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def _metadata(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))


def write_placeholder_wheels(root: RootFileSystem, folder: Path) -> list[str]:
    """Write an empty wheel for each Python package in the root file system, so that pip does not replace the package.

    Returns:
        The names of the empty wheels' .dist-info folders, which must be removed after installation.
    """
    info_folders = []
    site = root.folder / "usr" / "lib" / "python3" / "dist-packages"
    for package in importlib.metadata.distributions(path=[str(site)]):
        if not package.name or not re.fullmatch(r"[0-9][0-9A-Za-z.+!]*", package.version or ""):
            continue
        stem = f"{re.sub(r'[-_.]+', '_', package.name)}-{package.version}"
        info = f"{stem}.dist-info"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
            metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        info_folders.append(info)
    return info_folders


def device_pip(root: RootFileSystem) -> list[str]:
    """Return a command that runs pip with environment markers evaluated for ``root`` rather than this machine.

    Raises:
        TargetError: pip is not installed.
    """
    return pip_for(MACHINES[root.architecture], root.python)


def pip_for(machine: str, python: str) -> list[str]:
    """Return a command that runs pip with environment markers evaluated for another architecture and Python version.

    Raises:
        TargetError: pip is not installed.
    """
    if importlib.util.find_spec("pip") is None:
        raise TargetError(
            f"pip, which is required to download wheels, is not installed: run {sys.executable} -m ensurepip"
        )
    return [*python_command(_DEVICE_PIP, machine, python), "--disable-pip-version-check", "--no-input"]


def wheel_options(root: RootFileSystem, python: str) -> list[str]:
    """Return pip options that restrict wheels to the architecture and glibc version of ``root``."""
    return platform_options(MACHINES[root.architecture], GLIBC_MINOR[root.release], python)


def platform_options(machine: str, glibc_minor: int, python: str) -> list[str]:
    """Return pip options that restrict wheels to an architecture, a glibc version 2.x and a Python version."""
    names = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc_minor, 16, -1)]
    names += [f"manylinux2014_{machine}", f"linux_{machine}"]
    if machine == "x86_64":
        names += ["manylinux2010_x86_64", "manylinux1_x86_64"]
    return ["--only-binary=:all:", "--python-version", python, *(f"--platform={name}" for name in names)]


def _explain(done: Outcome, root: RootFileSystem) -> str:
    """Return an error message for a failed pip command, which lists available versions if a wheel is missing."""
    machine = MACHINES[root.architecture]
    missing = re.search(r"No matching distribution found for (\S+)", done.stderr)
    if missing is None:
        return f"pip cannot install the requirements for Python {root.python} on {machine}: {done.error_line}"
    name, available = package_name(missing[1]), []
    for python in _PYTHONS:
        command = [*device_pip(root), "index", "versions", name, *wheel_options(root, python)]
        if match := re.search(r"Available versions: (.+)", call(command, timeout_s=INDEX_TIMEOUT_S).stdout):
            available.append(f"Python {python}: {', '.join(match[1].split(', ')[:3])}")
    wheel = f"no wheel of {missing[1]} is available for Python {root.python} on {machine} (Debian {root.release})"
    if name == "edgerec":
        return f"{wheel}: build one with python -m build, and pass its folder with --find-links"
    if not available:
        return f"{wheel} or any other Python version"
    return f"{wheel}. Available versions: {'; '.join(available)}"
