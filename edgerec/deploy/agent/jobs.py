"""Execute a job: deploy a release, roll back to the previous release, or remove all releases."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from edgerec.deploy.agent import signatures
from edgerec.deploy.agent.cleanup import delete_incomplete, prune
from edgerec.deploy.agent.errors import AgentError, describe
from edgerec.deploy.agent.files import read_json, remove_folder, remove_path
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.job_log import JobLog
from edgerec.deploy.agent.job_process import START_S
from edgerec.deploy.agent.locking import acquire_lock
from edgerec.deploy.agent.monitor import monitor
from edgerec.deploy.agent.releases import discard, install, verify
from edgerec.deploy.agent.service import UNIT, log_position, service_log, systemctl, uninstall_unit, unit_state
from edgerec.deploy.agent.trial import accept, finish_commit, restore, switch


def run_job(installation: Installation) -> None:
    """Execute the request in job.json, and write the progress to deploy.log."""
    job = read_json(installation.job_file)
    lock = acquire_lock(installation, job["host"], START_S)
    log = JobLog(installation.log_file, job["id"])
    try:
        trial = read_json(installation.trial_file)
        # If trial.json exists, an earlier job was killed during a trial period.
        if trial and not finish_commit(installation):
            restore(installation, trial)
        log.write({"result": JOBS[job["do"]](installation, job, log)})
    except AgentError as error:
        log.write(error.to_dict())
    except OSError as error:
        log.write(AgentError(describe(error), "install").to_dict())
    except Exception as error:
        log.write(AgentError(f"the agent failed: {error!r}").to_dict())
        raise
    finally:
        remove_path(installation.job_file)
        lock.close()


def deploy(installation: Installation, job: dict[str, Any], log: JobLog) -> dict[str, Any]:
    """Install, verify and start a release. If the new release is not healthy, restore the previous one."""
    if installation.is_complete(job["release"]):
        job["venv"] = installation.release_info(job["release"])["venv"]
    delete_incomplete(installation, job["release"], job["venv"])
    job["signer"], serial = signatures.check_bundle(installation, job)
    signatures.add_signature(installation, job)
    install(installation, job, log)
    # Even an installed release is verified again, because e.g. a system update may have damaged the release.
    try:
        verify(installation, job, log)
    except AgentError:
        discard(installation, job)
        raise
    return _try_release(installation, job, serial, log)


def roll_back(installation: Installation, job: dict[str, Any], log: JobLog) -> dict[str, Any]:
    """Roll back to the previous release, and check its health like that of a new release."""
    release = installation.previous()
    if not release:
        raise AgentError("there is no previous release on the device: deploy a bundle instead", "plan")
    signatures.check_installed_release(installation, job, release)
    return _try_release(installation, {**job, "release": release}, 0, log)


def _try_release(installation: Installation, job: dict[str, Any], serial: int, log: JobLog) -> dict[str, Any]:
    """Start a release and monitor its health. If the release is not healthy, restore the previous one."""
    release = job["release"]
    log.step("switch", "running", f"restarting the service with release {release}")
    trial: dict[str, Any] = {}
    position = log_position()
    try:
        trial = {"release": release, "previous": installation.current()}
        trial = switch(installation, job)
        unit = unit_state()
        systemctl("restart", "--no-block", UNIT)
        log.step("switch", "done", f"release {release}")
        frames = monitor(release, unit.get("InvocationID"), job["healthy_within_s"], job["settle_s"], log)
        accept(installation, release, trial["previous"], serial, job)
    except (AgentError, OSError) as error:
        lines = service_log(position)
        trial.update(read_json(installation.trial_file))
        restore(installation, trial)
        previous = trial["previous"]
        outcome = f"release {previous} was restored" if previous else "the service was stopped"
        log.step("restore", "done", outcome)
        # An error while deleting old releases must not hide the reason why the new release failed.
        with contextlib.suppress(OSError):
            prune(installation, job["keep"])
        raise AgentError(f"{outcome}, because {describe(error)}", "monitor", bool(previous), lines) from None
    finish_commit(installation)
    log.step("monitor", "done", f"the service is healthy: {frames} frames classified")
    removed = prune(installation, job["keep"])
    log.step("prune", "done", f"{removed} old releases removed")
    return {"release": release, "previous": trial["previous"], "changed": True}


def remove(installation: Installation, job: dict[str, Any], log: JobLog) -> dict[str, Any]:
    """Stop the service and delete all releases, but keep the configuration in ``/etc/edgerec``."""
    current = installation.current()
    log.step("switch", "running", "stopping the service")
    if os.path.exists(installation.unit_file):
        uninstall_unit(installation.unit_file)
    log.step("switch", "done", "the service was stopped and removed")
    # Delete the symbolic link first, so that it never points to a partially deleted release.
    for path in (installation.current_link, installation.trial_file, installation.state_file):
        remove_path(path)
    for folder in (installation.releases, installation.venvs, installation.store):
        remove_folder(folder)
    remove_path(installation.old_config_file)
    log.step("prune", "done", "all releases were removed")
    return {"release": "", "previous": current, "changed": bool(current)}


JOBS = {"deploy": deploy, "rollback": roll_back, "remove": remove}
