"""Restore the previous release if the device was restarted, e.g. by a power failure, during a trial period."""

from __future__ import annotations

import sys

from edgerec.deploy.agent.files import read_json, remove_path
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.processes import run
from edgerec.deploy.agent.service import UNIT, boot_id
from edgerec.deploy.agent.trial import finish_commit, undo_switch


def check_boot(installation: Installation) -> None:
    """Restore the previous release if the device was restarted during the trial period of a new release."""
    trial = read_json(installation.trial_file)
    if not trial or trial.get("boot_id") == boot_id() or finish_commit(installation):
        return
    if trial.get("previous") or installation.current() != trial.get("release"):
        unit_changed = undo_switch(installation, trial)
        sys.stderr.write(
            f"The device was restarted during a deployment: release {installation.current()} is now active\n"
        )
        # systemd has already loaded the unit of the new release, so the restored unit must be loaded again.
        if unit_changed:
            run(["systemctl", "daemon-reload"])
            run(["systemctl", "restart", "--no-block", UNIT])
    else:
        # If the first release is in its trial period, keep it, because there is no previous release to restore.
        remove_path(installation.trial_file)
