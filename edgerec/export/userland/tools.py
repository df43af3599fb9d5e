"""What the proof needs of the system: programs that must be there and must not fail, locks among processes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgerec.errors import TargetError
from edgerec.export.programs import call

# Another edgerec that builds the same thing is waited for so long.
LOCK_TIMEOUT_S = 1800


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
