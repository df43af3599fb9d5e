"""Run untrusted programs and Python code in child processes, with limits on time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_OUTPUT_FILE_BYTES = 64 << 20
# The default timeout in seconds is long, because importing a large library from an SD card is slow.
TIMEOUT_S = 60.0
TIMED_OUT = "it timed out"
# Interval in seconds at which the event ``stop`` is checked while a program is running.
_POLL_S = 0.1
# Matches error messages of pip, apt, mkdir, tar, unshare and the dynamic linker.
_ERROR_LINE = re.compile(r"(?:e:|error|mkdir:|tar:|unshare:|.*cannot open shared object file)", re.IGNORECASE)
_PATH = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1))\n"


@dataclass(frozen=True)
class Outcome:
    """The result of a program that ran in a child process.

    Attributes:
        code: exit code, or the negative signal number if a signal ended the program.
        stdout, stderr: the program's output, empty if it was redirected to a file.
        failure: description of an abnormal end without a subject, e.g. ``timed out after 5 s``. It is empty if the
            program exited by itself.
        finished: False if the program could not be started or was stopped because of its time limit.
    """

    code: int
    stdout: str = ""
    stderr: str = ""
    failure: str = ""
    finished: bool = True

    @property
    def reason(self) -> str:
        """Reason why the program failed, or an empty string if it succeeded."""
        if self.failure:
            return f"it {self.failure}"
        return self.error_line if self.code else ""

    @property
    def error_line(self) -> str:
        """Last line of output that looks like an error message, or the last line if there is no error message."""
        lines = [line.strip() for line in (self.stderr.strip() or self.stdout.strip()).splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR_LINE.match(line)]
        return (errors or lines or [f"exit code {self.code}"])[-1]


def python_command(code: str, *arguments: str) -> list[str]:
    """Return a command that runs Python code with this process's ``sys.path``, but without the current folder.

    ``python -c`` adds the current folder to ``sys.path``. If a user runs edgerec in the folder of a bundle, Python
    would execute a file such as ``numpy.py`` in the bundle.
    """
    folders = [*filter(None, sys.path), str(Path(__file__).resolve().parents[2])]
    return [sys.executable, "-P", "-c", _PATH + code, json.dumps(folders), *arguments]


def run_python(code: str, *arguments: str, content: bytes = b"", timeout_s: float = TIMEOUT_S) -> Outcome:
    """Run Python code in a child process.

    Args:
        code: the Python code.
        arguments: the code's command-line arguments, in ``sys.argv``.
        content: bytes that the process can read from standard input.
        timeout_s: time limit in seconds.

    Raises:
        ValueError: an argument contains a character that the system does not accept.
    """
    return run_program(python_command(code, *arguments), content=content, timeout_s=timeout_s)


def ask_python(code: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> tuple[Any, str]:
    """Run Python code in a child process, and parse the last line of its output as JSON.

    Returns:
        The parsed value and an empty string, or None and the reason if the code failed.
    """
    done = run_python(code, *arguments, timeout_s=timeout_s)
    try:
        return (None, done.reason) if done.reason else (json.loads(done.stdout.splitlines()[-1]), "")
    except (ValueError, IndexError):
        return None, "it printed no result"


def run_program(
    command: Sequence[str | Path],
    *,
    content: bytes = b"",
    timeout_s: float,
    errors: str = "replace",
    stop: threading.Event | None = None,
    **options: Any,
) -> Outcome:
    """Run a program, and stop it and its child processes if it exceeds the time limit.

    Unlike :func:`subprocess.run`, this function also kills the program's child processes.

    Args:
        command: program and its arguments.
        content: bytes that the program can read from standard input.
        timeout_s: time limit in seconds.
        errors: error handler for output that is not UTF-8, as for :meth:`bytes.decode`.
        stop: event that stops the program and its child processes when it is set by another thread. It cannot be
            combined with ``content``.
        options: further arguments of :class:`subprocess.Popen`, e.g. ``env``, or an open file as ``stdout``.

    Raises:
        ValueError: an argument contains a character that the system does not accept.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    popen: Any = subprocess.Popen  # mypy cannot infer that the output is of type bytes.
    try:
        with popen([str(part) for part in command], start_new_session=True, **pipes | options) as process:
            try:
                outputs = _communicate(process, content, timeout_s, stop)
            except BaseException:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
                raise
    except subprocess.TimeoutExpired:
        if stop is not None and stop.is_set():
            return Outcome(-signal.SIGTERM, failure="was stopped", finished=False)
        return Outcome(-signal.SIGTERM, failure=f"timed out after {timeout_s:g} s", finished=False)
    except OSError as error:
        return Outcome(127, failure=f"cannot be started: {error.strerror}", finished=False)
    failure = f"crashed with {_signal_name(-process.returncode)}" if process.returncode < 0 else ""
    stdout, stderr = ((output or b"").decode(errors=errors) for output in outputs)
    return Outcome(process.returncode, stdout, stderr, failure)


def _communicate(process: Any, content: bytes, timeout_s: float, stop: threading.Event | None) -> tuple[Any, Any]:
    """Return the output of a process. Raise :class:`subprocess.TimeoutExpired` after the time limit or on ``stop``."""
    if stop is None:
        return process.communicate(content or None, timeout=timeout_s)
    if content:
        raise ValueError("stop cannot be combined with content, because a repeated communicate() would not write it")
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            return process.communicate(timeout=min(left_s, _POLL_S))
        except subprocess.TimeoutExpired:
            if stop.is_set() or left_s <= _POLL_S:
                raise


def limit_resources(memory_bytes: int) -> None:
    """Limit the memory and output file size of this process, and prevent core dumps. Call this in the child process.

    Args:
        memory_bytes: additional address space that the process may use.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError):  # If memory runs out, the kernel kills the child process first.
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: MAX_OUTPUT_FILE_BYTES}
    with contextlib.suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = used + memory_bytes
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (limit, hard))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
