"""Start a job in its own process, and follow the log of the job until it ends."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from edgerec.deploy.agent.errors import AgentError, describe
from edgerec.deploy.agent.files import free_bytes, read_bytes, write_json
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.locking import is_locked
from edgerec.deploy.agent.processes import INSTALL_TIMEOUT_S, run
from edgerec.deploy.agent.service import boot_id

# If a job has not locked the installation, it is treated as failed after this many seconds.
START_S = 20
# If a job has released its lock but written no result, it is treated as failed after this many seconds.
END_S = 5
# Minimum free disk space in bytes that a job needs for its log file.
MIN_LOG_BYTES = 1 << 16


def start_job(installation: Installation, job: dict[str, Any]) -> None:
    """Start a job that continues to run after the SSH session has ended."""
    write_json(installation.job_file, job, 0o600)  # Only root may read the job, because it may contain passwords.
    command = [sys.executable, installation.agent_file, "job", "--prefix", installation.prefix]
    systemd_run = ["systemd-run", "--quiet", "--collect", "--unit", "edgerec-deploy-{}".format(job["id"])]
    if run([*systemd_run, *command]).code == 0:
        return
    subprocess.Popen(  # If systemd-run failed, the job is started without systemd.
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def follow_job(installation: Installation, job: str, skip: int, reply: Callable[[Any], None]) -> None:
    """Send the lines of a job's log until the job ends, but skip the first ``skip`` lines."""
    start_s, printed, free_s = time.monotonic(), 0, None
    while True:
        lines = (read_bytes(installation.log_file) or b"").decode("utf-8", "replace").split("\n")[:-1]
        first = json.loads(lines[0]) if lines else {}
        if first.get("job") == job:
            for line in lines[1:][max(printed, skip) :]:
                reply(json.loads(line))
            printed = max(printed, len(lines) - 1)
            last = json.loads(lines[-1])
            if "result" in last or "error" in last:
                return
            if first["boot_id"] != boot_id():
                release = installation.current() or "none"
                raise AgentError(
                    f"the device restarted during the deployment, and release {release} is current: deploy the "
                    "bundle again",
                    "monitor",
                )
        # A running job always holds the lock, so the job was killed if the lock stays free.
        if is_locked(installation):
            free_s = None
        else:
            free_s = free_s or time.monotonic()
            if time.monotonic() - free_s > (END_S if printed else START_S):
                if free_bytes(installation.prefix) < MIN_LOG_BYTES:
                    raise AgentError(describe(OSError(errno.ENOSPC, "")), "install")
                raise AgentError("the job on the device was interrupted: deploy the bundle again", "install")
        if time.monotonic() - start_s > 2 * INSTALL_TIMEOUT_S:
            raise AgentError(
                "the agent on the device stopped before the installation was complete: check the state with edgerec "
                "devices, and deploy again",
                "install",
            )
        time.sleep(0.1)
