"""The exception for failed operations on the device, and its conversion into a message for the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any


class AgentError(Exception):
    """Raised when an operation on the device fails."""

    def __init__(self, message: str, step: str = "", restored: bool = False, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.step, self.restored, self.log = step, restored, list(log)

    def to_dict(self) -> dict[str, Any]:
        return {"error": str(self), "step": self.step, "restored": self.restored, "log": self.log}


def describe(error: AgentError | OSError) -> str:
    """Convert an exception into an error message for the user."""
    if isinstance(error, AgentError):
        return str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the device is full: delete files, or deploy with a lower value of --keep"
    return f"{os.strerror(error.errno or 0)} ({error.filename}): check the device's disk"
