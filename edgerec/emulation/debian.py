"""Unpack Debian packages for any architecture into a folder with mmdebstrap.

Root permissions are not required, and the packages installed on this machine do not change.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from edgerec.errors import TargetError
from edgerec.utils.child_process import Outcome, run_program
from edgerec.utils.url_redaction import redacted

MIRROR = "EDGEREC_DEBIAN_MIRROR"
UNPACK_TIMEOUT_S = 1800
# Apt sources refer to a Debian release by one of these codenames or suites.
_RELEASE = re.compile(r"(stable|oldstable|testing|unstable|sid|bullseye|bookworm|trixie|forky)\b")
_SCHEMES = ("http", "https", "file", "copy")
# mmdebstrap runs this code before it unpacks packages, because /bin, /lib and /sbin are links to /usr in Debian.
_LINK_USR = 'for name in bin lib sbin; do mkdir -p "$1/usr/$name" && ln -s "usr/$name" "$1/$name"; done'


def find_mirror() -> str:
    """Return the URL of a Debian mirror from ``$EDGEREC_DEBIAN_MIRROR`` or this machine's apt sources.

    Raises:
        TargetError: the variable is not a valid URL, or it is not set and the apt sources contain no Debian mirror.
    """
    if mirror := os.environ.get(MIRROR, "").strip():
        # The URL is inserted into an apt sources file, so it must not contain spaces or options.
        if urlsplit(mirror).scheme not in _SCHEMES or re.search(r"[\s\[\]#]", mirror):
            raise TargetError(f"{MIRROR} must be the URL of a Debian mirror, got {redacted(mirror)!r}")
        return mirror
    done = call(
        [require_program("apt-get", "apt"), "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(CREATED_BY)"],
        timeout_s=60,
    )
    for line in done.stdout.splitlines():
        url, release, kind = [*line.split("|"), "", ""][:3]
        is_debian = _RELEASE.match(release) and urlsplit(url).scheme in _SCHEMES
        if kind == "Packages" and is_debian and "security" not in url + release:
            return url
    raise TargetError(f"this machine's apt sources contain no Debian mirror: set {MIRROR} to the URL of one")


def unpack_packages(release: str, architecture: str, packages: Sequence[str], folder: Path) -> None:
    """Download packages and their dependencies, and unpack them into an empty folder.

    Args:
        release: Debian release codename, such as ``trixie``.
        architecture: Debian architecture name: ``arm64``, ``armhf`` or ``amd64``.
        packages: package names.
        folder: an empty folder.

    Raises:
        TargetError: mmdebstrap is missing, the mirror is unavailable, or the disk is full.
    """
    run_mmdebstrap(
        release,
        architecture,
        packages,
        folder,
        # Package scripts are not run, so they need no checks.
        ("--mode=chrootless", "--variant=extract", "--skip=check/chrootless", f"--setup-hook={_LINK_USR}"),
        timeout_s=UNPACK_TIMEOUT_S,
    )


def run_mmdebstrap(
    release: str,
    architecture: str,
    packages: Sequence[str],
    folder: Path,
    options: Sequence[str],
    *,
    timeout_s: float,
) -> None:
    """Run mmdebstrap with this machine's Debian mirror and proxy settings.

    Args:
        release: Debian release codename.
        architecture: Debian architecture name.
        packages: package names.
        folder: an empty folder for the packages' files.
        options: other options of mmdebstrap.
        timeout_s: time limit in seconds.

    Raises:
        TargetError: mmdebstrap is missing or fails, the mirror is unavailable, or the disk is full.
    """
    mmdebstrap, mirror = require_program("mmdebstrap", "mmdebstrap"), find_mirror()
    # mmdebstrap ignores the apt configuration, so proxy and certificate settings are passed as options.
    configuration = call([require_program("apt-config", "apt"), "dump", "Acquire"], timeout_s=60).stdout
    network = [line for line in configuration.splitlines() if line.startswith("Acquire::http")]
    # Mirror and proxy URLs may contain passwords, so pass them in private files rather than as arguments.
    with tempfile.TemporaryDirectory() as private_folder:
        settings, sources = Path(private_folder, "apt.conf"), Path(private_folder, "sources.list")
        settings.write_text("\n".join(('Acquire::Retries "3";', *network, "")), encoding="utf-8")
        sources.write_text(f"deb {mirror} {release} main\n", encoding="utf-8")
        command = [
            *(mmdebstrap, f"--architectures={architecture}", f"--include={','.join(packages)}", *options),
            *(f"--aptopt={settings}", release, str(folder), str(sources)),
        ]
        done = call(command, timeout_s=timeout_s)
    if done.code:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or [done.error_line]
        advice = f"check the network and the free disk space, or set {MIRROR} to another mirror"
        if "NO_PUBKEY" in done.stderr:
            advice = "run sudo apt install debian-archive-keyring"
        elif any(reason in done.stderr for reason in ("arch-test", "neither be executed", "Exec format error")):
            advice = "run sudo apt install arch-test qemu-user-static, because these packages are required to run "
            advice += f"programs for {architecture}"
        raise TargetError(
            f"cannot install Debian {release} packages for {architecture} from {redacted(mirror)}: {errors[0]}: "
            f"{advice}"
        )


def call(command: Sequence[str | Path], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Outcome:
    """Run a program and return its exit code and output.

    Raises:
        TargetError: the program cannot be started or exceeds the time limit.
    """
    outcome = run_program(command, timeout_s=timeout_s, env=env)
    if not outcome.finished:
        raise TargetError(
            f"{Path(command[0]).name} {outcome.failure}: check that the program works on this machine, and try again"
        )
    return outcome


def require_program(program: str, package: str) -> str:
    """Return a program's path.

    Raises:
        TargetError: the program is missing. The message contains a command that installs it.
    """
    path = shutil.which(program)
    if path is None:
        raise TargetError(
            f"--on requires the program {program}, which is not installed: run apt install {package} (on systems other "
            "than Debian and Ubuntu, use a container)"
        )
    return path
