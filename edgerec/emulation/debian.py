"""Download Debian packages for any architecture with apt, and unpack them into a folder without installing them.

apt uses separate package lists, so root is not needed and the packages of this machine do not change. The other
settings of apt (proxies, certificates, keys) are used.
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
# Names of Debian releases in the package sources of a Debian system.
_RELEASE = re.compile(r"(stable|oldstable|testing|unstable|sid|bullseye|bookworm|trixie|forky)\b")

_SCHEMES = ("http", "https", "file", "copy")


def find_mirror() -> str:
    """Return the URL of a Debian mirror: ``$EDGEREC_DEBIAN_MIRROR``, or the Debian source of this machine's apt.

    Raises:
        TargetError: the variable is not a valid URL, or there is neither the variable nor a Debian source.
    """
    if mirror := os.environ.get(MIRROR, "").strip():
        # The URL becomes part of a line in a sources file, so it must not contain spaces or options.
        if urlsplit(mirror).scheme not in _SCHEMES or re.search(r"[\s\[\]#]", mirror):
            raise TargetError(f"{MIRROR} is {redacted(mirror)!r}, expected the address of a Debian mirror")
        return mirror
    done = call(
        [need("apt-get", "apt"), "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(CREATED_BY)"], timeout_s=60
    )
    for line in done.stdout.splitlines():
        address, release, kind = [*line.split("|"), "", ""][:3]
        is_debian = _RELEASE.match(release) and urlsplit(address).scheme in _SCHEMES
        if kind == "Packages" and is_debian and "security" not in address + release:
            return address
    raise TargetError(f"this machine's apt has no Debian source: set {MIRROR} to the address of a Debian mirror")


@dataclass(frozen=True)
class Apt:
    """apt with separate package lists for one Debian release and architecture.

    Attributes:
        folder: folder with the package lists and the downloaded packages.
        options: command-line options of apt-get.
    """

    folder: Path
    options: tuple[str, ...]

    def download_all(self, packages: Sequence[str]) -> list[Path]:
        """Download the packages and their dependencies, and return the paths of the .deb files."""
        checked(
            ["apt-get", *self.options, "install", "--download-only", "--yes", "--no-install-recommends", *packages],
            f"downloading {', '.join(packages)}",
            timeout_s=DOWNLOAD_TIMEOUT_S,
        )
        return sorted((self.folder / "cache" / "archives").glob("*.deb"))

    def download(self, package: str) -> Path:
        """Download a package without its dependencies, and return the path of the .deb file."""
        # apt-get download writes to the current folder.
        done = call(
            ["apt-get", *self.options, "download", package], timeout_s=DOWNLOAD_TIMEOUT_S, cwd=self.folder / "single"
        )
        files = sorted((self.folder / "single").glob("*.deb"))
        if done.code or not files:
            raise TargetError(f"downloading {package} failed: {done.last_line}")
        return files[0]


@contextmanager
def apt(release: str, architecture: str) -> Iterator[Apt]:
    """Download the package lists of a Debian release, and remove them at the end of the block.

    Args:
        release: name of the Debian release, such as ``trixie``.
        architecture: Debian's name of the architecture: ``arm64``, ``armhf`` or ``amd64``.

    Raises:
        TargetError: apt is missing, or the mirror is not available.
    """
    need("apt-get", "apt")
    mirror = find_mirror()
    with tempfile.TemporaryDirectory(prefix="edgerec-apt-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # if apt runs as root, it reads this folder as the user _apt
        for name in ("lists/partial", "cache/archives/partial", "single"):
            (folder / name).mkdir(parents=True)
        (folder / "single").chmod(0o777)
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
            # Container images may configure apt to delete downloaded packages, which would break download_all.
            "Dir::Cache::pkgcache": "",
            "APT::Keep-Downloaded-Packages": "true",
        }
        configured = Apt(folder, ("-q", *(f"-o{key}={value}" for key, value in settings.items())))
        done = call(["apt-get", *configured.options, "update", "--error-on=any"], timeout_s=UPDATE_TIMEOUT_S)
        if done.code:
            hint = "apt install debian-archive-keyring" if "NO_PUBKEY" in done.stderr else f"or set {MIRROR} to another"
            raise TargetError(
                f"Debian {release} for {architecture} cannot be downloaded from {mirror}: {done.last_line}; "
                f"check the network, {hint}"
            )
        yield configured


def unpack(package: Path, root: Path, *members: str) -> None:
    """Unpack a .deb file into the folder ``root``.

    Args:
        package: path of the .deb file.
        root: destination.
        members: files to unpack; if empty, all files.

    Raises:
        TargetError: the package is damaged, or the disk is full.
    """
    with tempfile.TemporaryFile() as archive:
        done = call([need("dpkg-deb", "dpkg"), "--fsys-tarfile", package], timeout_s=UNPACK_TIMEOUT_S, output=archive)
        if not done.code:
            archive.seek(0)
            # tar keeps /lib as a link to usr/lib, but dpkg-deb -x would replace the link by a folder.
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
        raise TargetError(f"{package.name} cannot be unpacked into {root}: {done.last_line}")
