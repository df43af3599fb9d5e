"""Find and run the system programs that the test in an emulated userland needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgerec.errors import TargetError
from edgerec.utils.subprocesses import call


def checked(command: Sequence[str | Path], what: str, *, timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """What the program wrote to stdout; raises :class:`TargetError` with its last words where it fails."""
    done = call(command, timeout_s=timeout_s, env=env)
    if done.code:
        raise TargetError(f"{what} failed ({Path(command[0]).name}, exit code {done.code}): {done.last_line}")
    return done.stdout


def need(program: str, package: str) -> str:
    """The program's path; raises :class:`TargetError` with the command that installs it."""
    found = shutil.which(program)
    if found is None:
        raise TargetError(
            f"{program} is missing, which the proof on a device's userland needs: apt install {package} "
            "(on another system than Debian or Ubuntu: in a container of it)"
        )
    return found
