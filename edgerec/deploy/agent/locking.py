"""Lock the installation, so that only one deployment at a time can change it."""

from __future__ import annotations

import fcntl
import os
import time
from typing import IO

from edgerec.deploy.agent.cleanup import delete_incomplete
from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.installation import Installation

# A session first acquires the session lock and then the job lock. Before a session starts its job, the session releases
# the job lock, so that the job can acquire it. Meanwhile, the session lock blocks other sessions.
SESSION_LOCK, JOB_LOCK = "session.lock", "lock"
# Maximum time in seconds that a session waits for a lock.
LOCK_S = 1.0
# Idle timeout in seconds of a session that has locked the installation.
IDLE_S = 120


def acquire_lock(installation: Installation, host: str, wait_s: float, name: str = JOB_LOCK) -> IO[str]:
    """Acquire an exclusive lock on the installation, and return the open lock file.

    Raises:
        AgentError: another deployment holds the lock.
    """
    path = os.path.join(installation.prefix, name)
    deadline_s = time.monotonic() + wait_s
    file = open(path, "a+")  # noqa: SIM115 (The file is open as long as the lock.)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(file, path):
                break
            # The previous lock holder deleted the lock file, so the new file at the same path must be locked.
            file.close()
            os.makedirs(installation.prefix, mode=0o755, exist_ok=True)
            file = open(path, "a+")  # noqa: SIM115
            continue
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                file.seek(0)
                holder = file.read(1000).strip() or "an unknown host"
                file.close()
                raise AgentError(
                    f"another deployment is in progress (started by {holder}): wait until it has finished. If its "
                    f"connection was lost during the transfer, the device ends it within {IDLE_S // 60} minutes",
                    "plan",
                ) from None
            time.sleep(0.1)
    file.seek(0)
    file.truncate()
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    file.write(f"{host[:100]} at {started}")
    file.flush()
    return file


def is_locked(installation: Installation) -> bool:
    """Return whether a job or a session holds the job lock."""
    try:
        with open(os.path.join(installation.prefix, JOB_LOCK), "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def lock_session(installation: Installation, host: str) -> tuple[IO[str], IO[str]]:
    """Create the installation's folders, and return the open files ``session.lock`` and ``lock``.

    Raises:
        AgentError: another deployment holds one of the locks.
    """
    installation.create_folders()
    session_lock = acquire_lock(installation, host, LOCK_S, SESSION_LOCK)
    job_lock = acquire_lock(installation, host, LOCK_S)
    # The folders are created again, because the previous lock holder may have deleted them.
    installation.create_folders()
    if not os.path.exists(installation.trial_file):
        # Incomplete files are deleted before the host checks the free disk space.
        delete_incomplete(installation)
    return session_lock, job_lock


def _is_same_file(file: IO[str], path: str) -> bool:
    """Return whether ``path`` refers to the open file ``file``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
