"""Run other programs with limits on time and output, and run code from a bundle as the user ``nobody``."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import read_bytes
from edgerec.deploy.agent.ownership import NOBODY

COMMAND_TIMEOUT_S = 120
INSTALL_TIMEOUT_S = 1800
# Maximum number of bytes of a program's output that are kept in memory.
MAX_OUTPUT_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
# Option of prctl(2) for a child subreaper, a process that becomes the parent of its orphaned descendants.
PR_SET_CHILD_SUBREAPER = 36
# Maximum time in seconds for ending the processes that a program has left running.
KILL_S = 10.0


class Finished(NamedTuple):
    """Result of a program.

    Attributes:
        code: exit code, 124 after a timeout, or 127 if the program cannot be started.
        output: end of the standard output.
        errors: end of the standard error output.
        complete: whether ``output`` is the complete standard output.
    """

    code: int
    output: str
    errors: str
    complete: bool = True


class _Tail:
    """A buffer for only the last bytes of a program's output, so that endless output does not fill the memory."""

    def __init__(self) -> None:
        self._content = bytearray()
        self.complete = True

    def add(self, chunk: bytes) -> None:
        self._content += chunk
        # The buffer may grow to twice the maximum, so that it is not copied after every chunk.
        if len(self._content) > 2 * MAX_OUTPUT_BYTES:
            self._shorten()

    def text(self) -> str:
        self._shorten()
        return self._content.decode("utf-8", "replace")

    def _shorten(self) -> None:
        if len(self._content) > MAX_OUTPUT_BYTES:
            del self._content[:-MAX_OUTPUT_BYTES]
            self.complete = False


def run(command: list[str], timeout_s: float = COMMAND_TIMEOUT_S, **options: Any) -> Finished:
    """Run a program without input. Only the last :data:`MAX_OUTPUT_BYTES` of its output are kept."""
    name = os.path.basename(command[0])
    deadline_s = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
    except OSError as error:
        return Finished(127, "", f"{name} cannot be started ({error.strerror})")
    output, errors = _Tail(), _Tail()
    with process, selectors.DefaultSelector() as selector:
        try:
            for pipe, tail in ((process.stdout, output), (process.stderr, errors)):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, tail)
            # The pipes are closed when the program and all processes that inherited its output have ended.
            while selector.get_map():
                for key, _ in selector.select(_left_s(deadline_s, process)):
                    chunk = os.read(key.fd, CHUNK_BYTES)
                    key.data.add(chunk)
                    if not chunk:
                        selector.unregister(key.fileobj)
            process.wait(_left_s(deadline_s, process))
        except subprocess.TimeoutExpired:
            return Finished(124, "", f"{name} did not finish within {timeout_s:g} s")
        finally:
            process.kill()  # The program may still be running. If it has ended, kill() has no effect.
    return Finished(process.returncode, output.text(), errors.text(), output.complete)


def _left_s(deadline_s: float, process: subprocess.Popen[bytes]) -> float:
    """Return the number of seconds until the deadline, or raise an error if the deadline has passed."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise subprocess.TimeoutExpired(process.args, 0)
    return left_s


def run_as_nobody(command: list[str], groups: Sequence[int] = ()) -> Finished:
    """Run a program like :func:`run`, but as the user ``nobody`` with an empty home folder.

    Processes that the program has left running are killed.

    Raises:
        AgentError: the program has left processes that cannot be killed.
    """
    import ctypes  # Some builds of Python lack this module, but boot-check must work there.

    home = tempfile.mkdtemp(prefix="edgerec-")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        os.chown(home, NOBODY, NOBODY)
        path = os.environ.get("PATH", "/usr/bin:/bin")
        environment = {"PATH": path, "LANG": "C.UTF-8", "HOME": home, "EDGEREC_CACHE": home}
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": list(groups)}
        return run(command, INSTALL_TIMEOUT_S, env=environment, cwd=home, **user)
    finally:
        _kill_children(command[0])
        shutil.rmtree(home, ignore_errors=True)


def _kill_children(program: str) -> None:
    """Kill all child processes of the user ``nobody``. Their own children become children of this process.

    Raises:
        AgentError: new processes were started faster than they were killed.
    """
    deadline_s = time.monotonic() + KILL_S
    while True:
        children = [process for process in os.listdir("/proc") if process.isdecimal() and _is_child_of_nobody(process)]
        if not children:
            return
        if time.monotonic() > deadline_s:
            raise AgentError(
                f"{os.path.basename(program)} has started processes that cannot be killed: restart the device, and do "
                "not use this bundle",
                "install",
            )
        for process in children:
            os.kill(int(process), signal.SIGKILL)
        for process in children:
            os.waitpid(int(process), 0)


def _is_child_of_nobody(process: str) -> bool:
    """Return whether a process is a child of this process, and runs as the user ``nobody``."""
    status = (read_bytes(f"/proc/{process}/status") or b"").decode("utf-8", "replace")
    return f"\nPPid:\t{os.getpid()}\n" in status and f"\nUid:\t{NOBODY}\t" in status


def last_line(text: str) -> str:
    """Return the last error message in a program's output, or its last line if there is no error message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no message"])[-1][:400]
