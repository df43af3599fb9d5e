"""Debian's packages for any processor, taken apart into a folder: apt chooses and checks them, nothing is installed.

apt runs with state of its own, so that this needs no root and leaves the machine's packages alone. What it is
configured with otherwise (proxies, certificates, keys) holds here too.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgerec.emulation.tools import checked, need
from edgerec.errors import TargetError
from edgerec.utils.subprocesses import call
from edgerec.utils.urls import redacted

MIRROR = "EDGEREC_DEBIAN_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
UPDATE_TIMEOUT_S = 300
DOWNLOAD_TIMEOUT_S = 1200
UNPACK_TIMEOUT_S = 120
# The names of Debian's releases, as sources on a Debian machine write them.
_RELEASE = re.compile(r"(stable|oldstable|testing|unstable|sid|bullseye|bookworm|trixie|forky)\b")

_SCHEMES = ("http", "https", "file", "copy")


def find_mirror() -> str:
    """Where Debian's packages are: ``$EDGEREC_DEBIAN_MIRROR``, or what this machine's apt takes Debian from.

    Raises:
        TargetError: neither says it.
    """
    if given := os.environ.get(MIRROR, "").strip():
        # One line of a sources file is made of it.
        if urlsplit(given).scheme not in _SCHEMES or re.search(r"[\s\[\]#]", given):
            raise TargetError(f"{MIRROR} is {redacted(given)!r}, expected the address of a Debian mirror")
        return given
    done = call(
        [need("apt-get", "apt"), "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(CREATED_BY)"], timeout_s=60
    )
    for line in done.stdout.splitlines():
        address, release, kind = [*line.split("|"), "", ""][:3]
        known = _RELEASE.match(release) and urlsplit(address).scheme in _SCHEMES
        if kind == "Packages" and known and "security" not in address + release:
            return address
    raise TargetError(f"this machine's apt has no Debian source: set {MIRROR} to a Debian mirror's address")


@dataclass(frozen=True)
class Apt:
    """apt with the package lists of one release and processor, in a folder of its own."""

    folder: Path
    options: tuple[str, ...]

    def with_dependencies(self, packages: Sequence[str]) -> list[Path]:
        """Download packages and all that they depend on."""
        checked(
            ["apt-get", *self.options, "install", "--download-only", "--yes", "--no-install-recommends", *packages],
            f"downloading {', '.join(packages)}",
            timeout_s=DOWNLOAD_TIMEOUT_S,
        )
        return sorted((self.folder / "cache" / "archives").glob("*.deb"))

    def alone(self, package: str) -> Path:
        """Download one package."""
        # It writes where it stands.
        done = call(
            ["apt-get", *self.options, "download", package], timeout_s=DOWNLOAD_TIMEOUT_S, cwd=self.folder / "alone"
        )
        found = sorted((self.folder / "alone").glob("*.deb"))
        if done.code or not found:
            raise TargetError(f"downloading {package} failed: {done.last_line}")
        return found[0]


@contextmanager
def apt(release: str, architecture: str) -> Iterator[Apt]:
    """Package lists of a Debian release for a processor, as Debian names it (``arm64``, ``armhf``, ``amd64``).

    Raises:
        TargetError: apt is missing, or the mirror does not answer.
    """
    need("apt-get", "apt")
    mirror = find_mirror()
    with tempfile.TemporaryDirectory(prefix="edgerec-apt-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt's own user reads it where apt runs as root
        for part in ("lists/partial", "cache/archives/partial", "alone"):
            (folder / part).mkdir(parents=True)
        (folder / "alone").chmod(0o777)
        signed = f" signed-by={KEYRING}" if KEYRING.is_file() else ""
        (folder / "sources.list").write_text(f"deb [arch={architecture}{signed}] {mirror} {release} main\n")
        (folder / "status").touch()
        settings = {
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # Some images clean away what was downloaded.
            "Dir::Cache::pkgcache": "",
            "APT::Keep-Downloaded-Packages": "true",
        }
        ready = Apt(folder, ("-q", *(f"-o{key}={value}" for key, value in settings.items())))
        done = call(["apt-get", *ready.options, "update", "--error-on=any"], timeout_s=UPDATE_TIMEOUT_S)
        if done.code:
            hint = "apt install debian-archive-keyring" if "NO_PUBKEY" in done.stderr else f"or set {MIRROR} to another"
            raise TargetError(
                f"Debian {release} for {architecture} is not to be had from {mirror}: {done.last_line}; "
                f"look at the network, {hint}"
            )
        yield ready


def unpack(package: Path, root: Path, *members: str) -> None:
    """Take a package's files apart into ``root``: all of them, or some.

    Raises:
        TargetError: the package is damaged, or the disk is full.
    """
    with tempfile.TemporaryFile() as archive:
        done = call([need("dpkg-deb", "dpkg"), "--fsys-tarfile", package], timeout_s=UNPACK_TIMEOUT_S, output=archive)
        if not done.code:
            archive.seek(0)
            # /lib is a link to usr/lib, and stays one (dpkg-deb -x makes a folder of it).
            command = [
                need("tar", "tar"),
                "-x",
                "--keep-directory-symlink",
                "--no-same-owner",
                "-C",
                str(root),
                *members,
            ]
            done = call(command, timeout_s=UNPACK_TIMEOUT_S, stdin=archive)
    if done.code:
        raise TargetError(f"{package.name} cannot be taken apart in {root}: {done.last_line}")
