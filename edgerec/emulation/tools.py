"""Find and run the system programs that the test in an emulated userland needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgerec.errors import TargetError
from edgerec.utils.subprocesses import call


def checked(command: Sequence[str | Path], what: str, *, timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """Return the program's stdout. If it fails, raise :class:`TargetError` with the last line of its output."""
    done = call(command, timeout_s=timeout_s, env=env)
    if done.code:
        raise TargetError(f"{what} failed ({Path(command[0]).name}, exit code {done.code}): {done.last_line}")
    return done.stdout


def need(program: str, package: str) -> str:
    """Return the program's path. If it is missing, raise :class:`TargetError` with the command that installs it."""
    path = shutil.which(program)
    if path is None:
        raise TargetError(
            f"{program} is missing, but --on needs it to emulate a device: apt install {package} "
            "(on a system other than Debian and Ubuntu, use a container)"
        )
    return path
