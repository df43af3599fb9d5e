"""The log file of a job, which the agent sends to the host while the job is running."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from edgerec.deploy.agent.files import remove_path
from edgerec.deploy.agent.service import boot_id


class JobLog:
    """The log file of a job, with one JSON object per line."""

    def __init__(self, path: str, job: str) -> None:
        remove_path(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (The log is open as long as the process.)
        self.write({"job": job, "boot_id": boot_id()})

    def write(self, value: Any) -> None:
        # A full disk must not prevent the agent from restoring the previous release.
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()

    def step(self, name: str, state: str, text: str = "", done: int = 0, total: int = 0) -> None:
        self.write({"step": name, "state": state, "text": text, "done": done, "total": total})
