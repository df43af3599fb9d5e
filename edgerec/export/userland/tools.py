"""Programs of the system: run with a limit, ended with all their children, their failure said in one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgerec.errors import TargetError

# Another edgerec that builds the same thing is waited for so long.
LOCK_TIMEOUT_S = 1800


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
) -> Done:
    """Run a program; whatever ends the wait, the program and its children end with it.

    It reads the file ``given`` and writes the file ``output``, where there is one.

    Raises:
        TargetError: it is not there, or was still running after ``timeout_s``.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=given or subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.PIPE,
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
    return Done(process.returncode, out or "", err)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with ``path`` among all processes of this machine while the block runs."""
    import fcntl  # not on Windows, where nothing comes here

    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOCK_TIMEOUT_S
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:
                    raise TargetError(
                        f"another edgerec has been building {path} for {LOCK_TIMEOUT_S} s: end it, and try again"
                    ) from None
                time.sleep(0.2)
        yield
