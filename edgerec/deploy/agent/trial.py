"""Switch to a new release for a trial period, which ends when the release is accepted or the previous one restored.

``trial.json`` is written before the symbolic link ``current`` is replaced, and contains what is required to restore the
previous release. It is deleted at the end of the trial period. A power failure at any time leaves a working release.
"""

from __future__ import annotations

import base64
import os
from typing import Any

from edgerec.deploy.agent.files import NEW, fsync_folder, read_bytes, read_json, remove_path, write_file, write_json
from edgerec.deploy.agent.installation import PREVIOUS, Installation
from edgerec.deploy.agent.service import UNIT, boot_id, systemctl, uninstall_unit


def switch(installation: Installation, job: dict[str, Any]) -> dict[str, Any]:
    """Replace the symbolic link ``current``, camera.toml and the systemd unit to start a release's trial period.

    Returns:
        The content of trial.json, from which :func:`undo_switch` restores the previous state.
    """
    config_file = installation.config_file
    trial = {
        "release": job["release"],
        "previous": installation.current(),
        "boot_id": boot_id(),
        "old_config": job.get("config") is not None and os.path.exists(config_file),
        "new_config": job.get("config") is not None and not os.path.exists(config_file),
    }
    # The unit is also stored in the release's folder, so that a rollback to this release can reinstall the unit.
    unit_file = installation.release_path(job["release"], UNIT)
    unit = job["unit"].encode() if "unit" in job else read_bytes(unit_file)
    trial["old_unit"] = unit != read_bytes(unit_file) and os.path.exists(unit_file)
    if trial["old_unit"]:
        remove_path(unit_file + PREVIOUS)
        os.link(unit_file, unit_file + PREVIOUS)
        fsync_folder(os.path.dirname(unit_file))
    # The backup is a hard link, because a hard link can be restored even if the disk is full.
    if trial["old_config"]:
        remove_path(installation.old_config_file)
        os.link(config_file, installation.old_config_file)
        fsync_folder(installation.config_folder)
    write_json(installation.trial_file, trial)
    if job.get("config") is not None:
        write_file(config_file, job["config"].encode(), 0o644)
    if unit is not None and unit != read_bytes(unit_file):
        write_file(unit_file, unit)
    if not os.path.exists(installation.secrets_file):
        token = base64.urlsafe_b64encode(os.urandom(18)).decode()
        content = f"# The web page asks for this token.\nEDGEREC_WEB_TOKEN={token}\n"
        write_file(installation.secrets_file, content.encode(), 0o600)
    point_to(installation, job["release"])
    if _write_unit(installation, job["release"]):
        systemctl("daemon-reload")
    systemctl("enable", "--quiet", UNIT)
    return trial


def undo_switch(installation: Installation, trial: dict[str, Any]) -> bool:
    """Restore the symbolic link ``current``, camera.toml and the systemd unit that :func:`switch` has replaced.

    Returns:
        Whether the installed systemd unit has changed.
    """
    changed = False
    if installation.current() == trial.get("release") and trial.get("previous") != trial.get("release"):
        point_to(installation, trial.get("previous") or "")
    if trial.get("old_config") and os.path.exists(installation.old_config_file):
        os.replace(installation.old_config_file, installation.config_file)
        fsync_folder(installation.config_folder)
    elif trial.get("new_config"):
        remove_path(installation.config_file)
    if trial.get("old_unit"):
        unit_file = installation.release_path(trial["release"], UNIT)
        if os.path.exists(unit_file + PREVIOUS):
            os.replace(unit_file + PREVIOUS, unit_file)
            fsync_folder(os.path.dirname(unit_file))
            # os.replace() keeps both paths if they are hard links to the same file.
            remove_path(unit_file + PREVIOUS)
    if trial.get("previous"):
        changed = _write_unit(installation, trial["previous"])
    remove_path(installation.trial_file)
    fsync_folder(installation.prefix)
    remove_path(installation.old_config_file)
    return changed


def restore(installation: Installation, trial: dict[str, Any]) -> None:
    """Restore and start the previous release. If there is no previous release, stop the service."""
    if undo_switch(installation, trial):
        systemctl("daemon-reload", step="restore")
    if not trial.get("previous"):
        uninstall_unit(installation.unit_file)
        return
    systemctl("restart", "--no-block", UNIT, step="restore")


def accept(installation: Installation, release: str, previous: str, serial: int, job: dict[str, Any]) -> None:
    """Record in trial.json that a release is healthy, so that :func:`finish_commit` can end its trial period.

    If the power fails before trial.json is replaced, the previous release is restored at the next boot. If the power
    fails later, the trial period is ended at the next boot.
    """
    state = installation.state()
    if previous != release:
        state["previous"] = previous
    state["good"] = release
    state["serial"] = max(serial, 0 if job.get("allow_downgrade") and serial else state.get("serial", 0))
    if job.get("require_signature") is not None:
        state["require_signature"] = job["require_signature"]
    trial = read_json(installation.trial_file)
    write_json(installation.trial_file, {**trial, "state": state, "signers": job.get("signers")})


def finish_commit(installation: Installation) -> bool:
    """End the trial period of an accepted release.

    Returns:
        False if no release is in its trial period, or if the release has not been accepted.
    """
    trial = read_json(installation.trial_file)
    if not trial.get("state"):
        return False
    if trial.get("signers") is not None:
        write_file(installation.signers_file, trial["signers"].encode())
    write_json(installation.state_file, trial["state"])
    remove_path(installation.trial_file)
    fsync_folder(installation.prefix)
    remove_path(installation.old_config_file)
    remove_path(installation.release_path(trial["release"], UNIT) + PREVIOUS)
    return True


def point_to(installation: Installation, release: str) -> None:
    """Atomically point the symbolic link ``current`` to a release. Delete the link if ``release`` is empty."""
    if not release:
        remove_path(installation.current_link)
    else:
        partial = installation.current_link + NEW
        remove_path(partial)
        os.symlink(os.path.join("releases", release), partial)
        os.replace(partial, installation.current_link)
    fsync_folder(installation.prefix)


def _write_unit(installation: Installation, release: str) -> bool:
    """Install a release's systemd unit, and return whether the installed unit has changed."""
    unit = read_bytes(installation.release_path(release, UNIT))
    if unit is None or unit == read_bytes(installation.unit_file):
        return False
    write_file(installation.unit_file, unit)
    return True
