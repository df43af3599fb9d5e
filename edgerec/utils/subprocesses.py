"""Run programs of the system with a time limit, and raise an error if a program cannot be run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgerec.errors import TargetError
from edgerec.utils.child_process import communicate


@dataclass(frozen=True)
class ProgramResult:
    """The result of a program.

    Attributes:
        code: exit code; the negative number of the signal if a signal ended the program.
        stdout, stderr: output of the program, decoded as UTF-8; empty if it was written to a file.
    """

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of the output for an error message; a line that looks like an error is preferred."""
        lines = [line.strip() for line in (self.stderr + "\n" + self.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("e:", "error", "mkdir:", "tar:", "unshare:"))]
        return (errors or lines or ["it printed nothing"])[-1]


def call(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
    output: IO[bytes] | None = None,
    errors: IO[bytes] | None = None,
) -> ProgramResult:
    """Run a program, and kill the program and its own child processes if the wait is interrupted.

    Args:
        command: the program and its arguments.
        timeout_s: time in seconds after which the program is killed.
        cwd, env: current folder and environment variables of the program; None to use those of this process.
        stdin: file that the program reads as standard input; None for an empty input.
        output, errors: files to which standard output and standard error are written; None to return them as strings.

    Raises:
        TargetError: the program cannot be started, or was still running after ``timeout_s``.
    """
    name = Path(command[0]).name
    files: dict[str, Any] = {"stdin": stdin or subprocess.DEVNULL} | {
        key: file for key, file in (("stdout", output), ("stderr", errors)) if file
    }
    try:
        done = communicate([str(part) for part in command], timeout_s=timeout_s, cwd=cwd, env=env, **files)
    except OSError as error:
        raise TargetError(f"{name} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise TargetError(f"{name} timed out after {timeout_s:g} s and was stopped: try again") from None
    return ProgramResult(done.returncode, *(text.decode(errors="replace") for text in (done.stdout, done.stderr)))
