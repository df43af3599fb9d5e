"""Programs of the system: run with a limit, ended with all their children."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgerec.errors import TargetError


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
    """Run a program; whatever ends the wait, the program and its children end with it.

    It reads the file ``given``, and writes the files ``output`` and ``errors``, where there are such.

    Raises:
        TargetError: it is not there, or was still running after ``timeout_s``.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=given or subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=errors or subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise TargetError(f"{name} does not run: {error.strerror}") from None
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise TargetError(f"{name} did not end within {timeout_s:g} s and was stopped: try again") from None
        except BaseException:
            _end(process)
            raise
    return Done(process.returncode, out or "", err or "")


def _end(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):  # not on Windows
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
