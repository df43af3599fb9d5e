"""Run programs of the system with a time limit."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgerec.errors import TargetError
from edgerec.utils.child_process import communicate


@dataclass(frozen=True)
class Done:
    """A program that ended; ``code`` is negative where a signal ended it."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """What it said last, for a message."""
        lines = [line.strip() for line in (self.stderr + "\n" + self.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("e:", "error", "mkdir:", "tar:", "unshare:"))]
        return (errors or lines or ["it said nothing"])[-1]


def call(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    given: IO[bytes] | None = None,
    output: IO[bytes] | None = None,
    errors: IO[bytes] | None = None,
) -> Done:
    """Run a program, and kill the program and its own child processes if the wait is interrupted.

    Args:
        command: the program and its arguments.
        timeout_s: time in seconds after which the program is killed.
        cwd, env: current folder and environment of the program; None for those of this process.
        given: file that the program reads as standard input; None for an empty input.
        output, errors: files to which standard output and standard error are written; None to return the text.

    Raises:
        TargetError: the program cannot be started, or was still running after ``timeout_s``.
    """
    name = Path(command[0]).name
    files: dict[str, Any] = {"stdin": given or subprocess.DEVNULL} | {
        key: file for key, file in (("stdout", output), ("stderr", errors)) if file
    }
    try:
        done = communicate([str(part) for part in command], timeout_s=timeout_s, cwd=cwd, env=env, **files)
    except OSError as error:
        raise TargetError(f"{name} does not run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise TargetError(f"{name} did not end within {timeout_s:g} s and was stopped: try again") from None
    return Done(done.returncode, *(text.decode(errors="replace") for text in (done.stdout, done.stderr)))
