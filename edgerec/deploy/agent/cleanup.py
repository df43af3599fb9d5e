"""Delete incomplete files of interrupted deployments, and old releases with the files that no other release uses."""

from __future__ import annotations

import os
import time

from edgerec.deploy.agent.environments import is_complete_venv, used_venvs
from edgerec.deploy.agent.files import REMOVED, read_json, remove_folder, remove_path
from edgerec.deploy.agent.installation import RELEASE, Installation

PART_AGE_S = 7 * 86400


def delete_incomplete(installation: Installation, keep_release: str = "", keep_venv: str = "") -> None:
    """Delete incomplete files and folders of interrupted deployments."""
    now = time.time()
    for name in os.listdir(installation.store):
        path = os.path.join(installation.store, name)
        if name.endswith(".part") and now - os.stat(path).st_mtime > PART_AGE_S:
            os.unlink(path)
    for name in os.listdir(installation.releases):
        complete = bool(RELEASE.fullmatch(name)) and installation.is_complete(name)
        if name != installation.current() and name != keep_release and not complete:
            remove_path(os.path.join(installation.releases, name))
    for name in os.listdir(installation.venvs):
        complete = is_complete_venv(os.path.join(installation.venvs, name)) and not name.endswith(REMOVED)
        if name != keep_venv and not complete:
            remove_path(os.path.join(installation.venvs, name))
    for folder in (installation.store, installation.releases, installation.venvs):
        remove_path(folder + REMOVED)
    remove_path(installation.old_config_file)


def prune(installation: Installation, keep: int) -> int:
    """Delete old releases, and the virtual environments and files that no remaining release uses.

    Args:
        installation: the installation.
        keep: number of releases to keep. The current, the previous and the last healthy release are always kept.

    Returns:
        The number of deleted releases.
    """
    state = installation.state()
    protected = {installation.current(), state.get("good"), state.get("previous")}
    releases = installation.complete_releases()
    others = [name for name in releases if name not in protected]
    removed = others[max(0, keep - (len(releases) - len(others))) :]
    for name in removed:
        remove_folder(installation.release_path(name))
    venvs = used_venvs(installation)
    used: set[str] = set()
    for name in os.listdir(installation.venvs):
        if name not in venvs:
            remove_folder(os.path.join(installation.venvs, name))
        used.update(read_json(os.path.join(installation.venvs, name, "wheels.json")).values())
    for name in os.listdir(installation.store):
        path = os.path.join(installation.store, name)
        # Each file of a release is a hard link to a file in the store, so an unused file has a link count of 1.
        if not name.endswith(".part") and name not in used and os.stat(path).st_nlink == 1:
            os.unlink(path)
    return len(removed)
