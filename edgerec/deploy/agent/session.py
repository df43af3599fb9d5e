"""Respond to the requests of a host, which arrive on stdin as one JSON object per line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

from edgerec.deploy.agent.environments import is_complete_venv
from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import NEW, free_bytes, remove_path
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.job_process import follow_job, start_job
from edgerec.deploy.agent.jobs import JOBS
from edgerec.deploy.agent.locking import IDLE_S, JOB_LOCK, LOCK_S, SESSION_LOCK, acquire_lock, lock_session
from edgerec.deploy.agent.status import status
from edgerec.deploy.agent.store import missing_files, receive_agent, receive_file

MAX_REQUEST_BYTES = 16 << 20


def respond_to_requests(installation: Installation) -> None:
    """Read requests from stdin, and write the replies to stdout, until stdin is closed or a job has ended."""
    session_lock = job_lock = None
    read = sys.stdin.buffer.read
    while True:
        # Limit the waiting time only if the session holds the lock, because only the lock blocks other sessions.
        signal.alarm(0 if job_lock is None else IDLE_S)
        line = sys.stdin.buffer.readline(MAX_REQUEST_BYTES)
        if not line:
            return
        request = json.loads(line)
        kind = request["do"]
        if kind == "status":
            reply(status(installation))
        elif kind == "lock":
            session_lock, job_lock = lock_session(installation, request["host"])
            reply({"locked": True})
        elif kind == "plan":
            reply(_plan(installation, request))
        elif kind == "receive":
            receive_file(installation, request["digest"], request["size"], request["offset"], read, reply)
            reply({"stored": request["digest"]})
        elif kind == "update-agent":
            if job_lock is None:
                raise AgentError("the installation is not locked: lock it before writing files", "send")
            receive_agent(installation, request["digest"], request["size"], read)
            reply({"updated": request["digest"]})
        elif kind == "remove-agent":
            reply({"removed": remove_agent(installation, request["host"])})
        elif kind in JOBS:
            if job_lock is None or session_lock is None:
                session_lock, job_lock = lock_session(installation, request["host"])
            job_lock.close()
            signal.alarm(0)
            start_job(installation, request)
            follow_job(installation, request["id"], 0, reply)
            session_lock.close()
            return


def reply(value: Any) -> None:
    """Write a reply to stdout as one JSON object on one line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def remove_agent(installation: Installation, host: str) -> bool:
    """Delete the agent's own files unless a release is installed or another deployment is in progress.

    Returns:
        Whether the files were deleted.
    """
    try:
        locks = [acquire_lock(installation, host, LOCK_S, name) for name in (SESSION_LOCK, JOB_LOCK)]
    except (AgentError, FileNotFoundError):
        return False
    if os.path.lexists(installation.current_link) or os.path.exists(installation.releases):
        return False
    written = (installation.agent_file, installation.new_signers_file, installation.job_file, installation.state_file)
    for path in (*written, installation.trial_file, installation.current_link):
        remove_path(path + NEW)
    for path in (installation.agent_file, installation.new_signers_file, installation.log_file):
        remove_path(path)
    for name in (JOB_LOCK, SESSION_LOCK):
        remove_path(os.path.join(installation.prefix, name))
    # The folder is kept if it contains other files or is a mount point.
    with contextlib.suppress(OSError):
        os.rmdir(installation.prefix)
    for lock in locks:
        lock.close()
    return True


def _plan(installation: Installation, request: dict[str, Any]) -> dict[str, Any]:
    """Return the missing files, whether the virtual environment and the release are installed, and the free space."""
    return {
        "missing": missing_files(installation, request["files"]),
        "venv": is_complete_venv(os.path.join(installation.venvs, request["venv"])),
        "complete": installation.is_complete(request["release"]),
        "free_bytes": free_bytes(installation.prefix),
    }
