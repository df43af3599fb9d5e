"""Run Python code in a child process, because native libraries and untrusted files can crash, hang or use up memory."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Maximum size of a file that a child process may write, and of the captured log of a native library.
MAX_FILE_BYTES = 64 << 20
_PATH = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1))\n"


@dataclass(frozen=True)
class Outcome:
    """The result of a child process.

    Attributes:
        code: exit code; the negative number of the signal that ended the process.
        stdout, stderr: output of the process.
        failure: reason for an abnormal end (a timeout or a signal); empty if the process exited normally.
    """

    code: int
    stdout: str = ""
    stderr: str = ""
    failure: str = ""

    @property
    def last_line(self) -> str:
        """The last line of stderr, or the exit code if stderr is empty."""
        return (self.stderr.strip().splitlines() or [f"exit code {self.code}"])[-1]


def python_command(code: str, *arguments: str) -> list[str]:
    """Return a command that runs Python code with this process's module path, but without the current folder.

    ``python -c`` puts the current folder first in the module search path. If the user runs edgerec in the folder of a
    bundle, Python would execute a file such as ``numpy.py`` in the bundle.
    """
    folders = [*filter(None, sys.path), str(Path(__file__).resolve().parents[2])]
    return [sys.executable, "-P", "-c", _PATH + code, json.dumps(folders), *arguments]


def run_python(code: str, *arguments: str, content: bytes = b"", timeout_s: float) -> Outcome:
    """Run Python code in a child process.

    Args:
        code: the Python code.
        arguments: command-line arguments, which the code finds in ``sys.argv``.
        content: bytes that the process can read from standard input.
        timeout_s: time in seconds after which the process is killed.

    Raises:
        ValueError: an argument contains a character that the system does not accept.
    """
    command = python_command(code, *arguments)
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(-signal.SIGTERM, failure=f"timed out after {timeout_s:g} s")
    failure = f"crashes with {_signal_name(-done.returncode)}" if done.returncode < 0 else ""
    stdout, stderr = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return Outcome(done.returncode, stdout, stderr, failure)


def limit_resources(memory_bytes: int) -> None:
    """Limit this process's memory and output files, and prevent core dumps. Call this in the child process.

    Args:
        memory_bytes: address space that the process may use in addition to what it uses now.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError):  # if memory runs out, the kernel should end this process before any other
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: MAX_FILE_BYTES}
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
