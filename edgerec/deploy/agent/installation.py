"""Paths of the installation on a device, and information about the installed releases."""

from __future__ import annotations

import os
import re
from typing import Any

from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import read_json
from edgerec.deploy.agent.service import UNIT

UNIT_FOLDER = "/etc/systemd/system"
CONFIG_FOLDER = "/etc/edgerec"
AGENT = "agent.pyz"
# File name suffix of backups that are restored if a new release fails.
PREVIOUS = ".previous"
DIGEST = re.compile(r"[0-9a-f]{64}")
RELEASE = re.compile(r"[0-9a-f]{16}")


class Installation:
    """The installation folder on a device, with its releases, virtual environments and state files.

    Attributes:
        prefix: installation folder.
        store: folder of received files, which are named by their SHA-256 digests.
        releases: folder of releases. Their files are hard links to files in the store.
        venvs: folder of virtual environments, which releases share.
        current_link: symbolic link to the current release.
        trial_file: exists while a new release is in its trial period.
        state_file: settings of the device, and digests of the previous release and of the last healthy release.
        job_file: request of the running job.
        agent_file: the agent.
        log_file: progress of the last job.
        new_signers_file: allowed signers of a bundle that is being installed.
        unit_file, config_file, signers_file, secrets_file: files of the camera service.
        old_config_file: backup of ``config_file`` while a new release is in its trial period.
    """

    def __init__(self, prefix: str, config_folder: str = CONFIG_FOLDER, unit_folder: str = UNIT_FOLDER) -> None:
        self.prefix, self.config_folder, self.unit_folder = prefix, config_folder, unit_folder
        self.store, self.releases, self.venvs = (os.path.join(prefix, name) for name in ("store", "releases", "venvs"))
        self.current_link = os.path.join(prefix, "current")
        self.trial_file = os.path.join(prefix, "trial.json")
        self.state_file = os.path.join(prefix, "state.json")
        self.job_file = os.path.join(prefix, "job.json")
        self.agent_file = os.path.join(prefix, AGENT)
        self.log_file = os.path.join(prefix, "deploy.log")
        self.new_signers_file = os.path.join(prefix, "allowed_signers.next")
        self.unit_file = os.path.join(unit_folder, UNIT)
        self.config_file = os.path.join(config_folder, "camera.toml")
        self.signers_file = os.path.join(config_folder, "allowed_signers")
        self.secrets_file = os.path.join(config_folder, "secrets.env")
        self.old_config_file = self.config_file + PREVIOUS

    def create_folders(self) -> None:
        for folder in (self.prefix, self.store, self.releases, self.venvs, self.config_folder):
            os.makedirs(folder, mode=0o755, exist_ok=True)

    def store_path(self, digest: str) -> str:
        """Return the path of a file in the content store."""
        if not DIGEST.fullmatch(digest):
            raise AgentError(
                f"the host sent the file digest {digest!r}, which is not a SHA-256 digest: update edgerec on the host",
                "send",
            )
        return os.path.join(self.store, digest)

    def release_path(self, release: str, *names: str) -> str:
        """Return the path of a release, or of a file in the release."""
        if not RELEASE.fullmatch(release or ""):
            raise AgentError(
                f"the host requested the release {release!r}, which is not a release ID of 16 hexadecimal digits: "
                "update edgerec on the host",
                "plan",
            )
        return os.path.join(self.releases, release, *names)

    def release_info(self, release: str) -> dict[str, Any]:
        """Return the content of release.json, which exists only in completely installed releases."""
        return read_json(self.release_path(release, "release.json"))

    def is_complete(self, release: str) -> bool:
        return bool(release) and bool(self.release_info(release))

    def current(self) -> str:
        """Return the digest of the current release, or an empty string if there is none."""
        try:
            release = os.path.basename(os.readlink(self.current_link))
        except OSError:
            return ""
        return release if RELEASE.fullmatch(release) else ""

    def complete_releases(self) -> list[str]:
        """Return the digests of all completely installed releases, newest first."""
        names = os.listdir(self.releases) if os.path.isdir(self.releases) else []
        complete = [name for name in names if RELEASE.fullmatch(name) and self.is_complete(name)]
        installed = {name: self.release_info(name).get("installed_s", 0) for name in complete}
        return sorted(complete, key=lambda name: (-installed[name], name))

    def state(self) -> dict[str, Any]:
        return read_json(self.state_file)

    def previous(self) -> str:
        """Return the digest of the release to which a rollback switches, or an empty string if there is none."""
        previous = self.state().get("previous") or ""
        return previous if previous != self.current() and self.is_complete(previous) else ""
