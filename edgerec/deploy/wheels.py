"""Download the wheels that a bundle requires, so that the device needs no internet access."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.deploy.device import DeviceFacts
from edgerec.emulation.debian import call
from edgerec.emulation.device_wheels import check_requirements, own_wheel, pip_for, platform_options, wheels_in
from edgerec.errors import DeployError
from edgerec.utils.atomic import cache_folder, replacing_folder, sha256
from edgerec.utils.lock import Lock

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 1200
REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class Wheels:
    """Wheels of all packages in a virtual environment.

    Attributes:
        paths: wheel files.
        unpacked_bytes: total size of the unpacked wheels.
    """

    paths: tuple[Path, ...]
    unpacked_bytes: int


def find_wheels(bundle: Bundle, target: Target, facts: DeviceFacts, python: str, find_links: str) -> Wheels:
    """Return the wheels that a bundle requires on a device, including the wheels of all dependencies.

    Downloaded wheels are cached until a wheel in the folder ``find_links`` changes.

    Args:
        bundle: the bundle.
        target: target of the bundle.
        facts: properties of the device.
        python: Python version of the virtual environment.
        find_links: folder or URL with additional wheels, or an empty string.

    Raises:
        BundleError: the bundle's requirements.txt is not valid for the target.
        DeployError: no wheel is available for a package on this device.
    """
    requirements = bundle.files[REQUIREMENTS].decode()
    check_requirements(requirements, target.requirements, f"{bundle.path}/{REQUIREMENTS}")
    glibc = re.fullmatch(r"2\.(\d+)", facts.glibc)
    if facts.machine == "armv7l" or glibc is None:
        raise DeployError(
            f"cannot collect wheels for {facts.machine} with {'glibc ' + facts.glibc if facts.glibc else 'no glibc'}: "
            "copy the bundle to the device and run install.sh there",
            step="check",
        )
    bundled = {name: content for name, content in bundle.files.items() if name.endswith(".whl")}
    cache = cache_folder() / "wheels"
    wheel = own_wheel(requirements, cache, bundled)
    own_digest = sha256(wheel.read_bytes()) if wheel else ""
    links = str(Path(find_links).resolve()) if find_links and Path(find_links).exists() else find_links
    inputs = [requirements, links, wheels_in(links), own_digest, facts.machine, glibc[1], python]
    key = sha256(json.dumps(inputs).encode())[:16]
    folder = cache / key
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info("collecting wheels for Python %s on %s (only required once)", python, facts.machine)
            with replacing_folder(folder) as partial:
                folders = [str(wheel.parent)] if wheel else []
                _download(
                    requirements, partial, facts.machine, int(glibc[1]), python, [*folders, *filter(None, [links])]
                )
    paths = tuple(sorted(folder.glob("*.whl")))
    return Wheels(paths, sum(map(_unpacked_bytes, paths)))


def venv_digest(wheels: Mapping[str, str], python: str, system_packages: bool) -> str:
    """Return a name for a virtual environment, so that bundles with the same packages share the environment.

    Args:
        wheels: dictionary that maps file names to SHA-256 digests.
        python: path of the interpreter and Python version.
        system_packages: whether the virtual environment can import Debian's Python packages.
    """
    return sha256(json.dumps([sorted(wheels.items()), python, system_packages]).encode())[:16]


def _download(
    requirements: str, folder: Path, machine: str, glibc_minor: int, python: str, links: Sequence[str]
) -> None:
    listing = folder / REQUIREMENTS
    listing.write_text(requirements)
    command = [
        *pip_for(machine, python),
        *("download", "--quiet", "--dest", str(folder)),
        *platform_options(machine, glibc_minor, python),
        *(part for link in links for part in ("--find-links", link)),
        *("--requirement", str(listing)),
    ]
    # If --find-links is given, pip first runs without an index, because this machine may have no network.
    done = call([*command, "--no-index"], timeout_s=DOWNLOAD_TIMEOUT_S) if links else None
    if done is None or done.code:
        done = call(command, timeout_s=DOWNLOAD_TIMEOUT_S)
    listing.unlink()
    if done.code:
        raise DeployError(
            f"cannot collect the wheels for Python {python} on {machine}: {done.error_line}; check the network, or "
            "pass a folder of wheels with --find-links",
            step="check",
        )


def _unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(info.file_size for info in archive.infolist())
