"""Run each fuzz case in a separate process, with limits on time, memory, files and network.

A target has three functions:

- ``start(work)`` runs once. It imports the modules that the cases use, and returns the valid inputs (``seeds``).
- ``make(rng, seeds, folder)`` writes a damaged input into an empty folder and returns the argument for ``use``.
- ``use(damaged, out)`` passes the damaged input to edgerec. It may write files only into ``out``, and raises
  :class:`EdgerecError` if edgerec refuses the input.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from edgerec.errors import EdgerecError
from fuzzing.tally import Figures, error_fault, peak_memory_bytes

# Name of a folder that hostile inputs refer to. It is outside of the output folder, so nothing may be written there.
FORBIDDEN_FOLDER = "elsewhere"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
_CODE = ("os.system", "os.exec", "os.posix_spawn", "pickle.find_class")


@dataclass(frozen=True)
class Target:
    """A fuzz target: one kind of input.

    Attributes:
        start, make, use: functions, see the docstring of this module.
        timeout_s: time in seconds after which a case counts as a hang.
        memory_bytes: resident memory that a case may use, in addition to the memory after ``start``.
        network: whether connections to loopback addresses are allowed.
    """

    start: Callable[[Path], Any]
    make: Callable[[Random, Any, Path], Any]
    use: Callable[[Any, Path], None]
    timeout_s: float = 100.0
    memory_bytes: int = 3 << 30
    network: bool = False


def run_target(name: str, target: Target, work: Path, *, seed: int, count: int, first: int = 0) -> Figures:
    """Run the cases ``first`` to ``first + count - 1`` of a target. Each case has its own random seed."""
    figures = Figures(name)
    work.mkdir(parents=True, exist_ok=True)
    seeds = target.start(work / "seeds")
    for number in range(first, first + count):
        start_s, case = time.monotonic(), f"{name}-{seed}-{number}"
        outcome, text = run_case(target, seeds, work / "case", case)
        figures.add(case, outcome, text, time.monotonic() - start_s)
    return figures


def in_child(function: Callable[[], None]) -> None:
    """Call a function that uses TensorFlow in a child process, because a process that has used it cannot fork."""
    child = os.fork()
    if not child:
        try:
            function()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the inputs cannot be created")


def run_case(target: Target, seeds: Any, folder: Path, case: str) -> tuple[str, str]:
    """Run one case in a child process; return the outcome (``accepted``, ``refused`` or ``broken``) and a message."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("input", "out", "here", "temporary", "cache", FORBIDDEN_FOLDER):
        (folder / name).mkdir(parents=True)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _child(target, seeds, folder, case, writer)
    os.close(writer)
    try:
        return _outcome(target, folder, child, reader)
    finally:
        os.close(reader)


def _outcome(target: Target, folder: Path, child: int, reader: int) -> tuple[str, str]:
    content, deadline = b"", time.monotonic() + target.timeout_s
    while True:
        ready = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]
        more = os.read(reader, 65536) if ready else b""
        content += more
        if not more:
            break
    timed_out = not ready
    with contextlib.suppress(ProcessLookupError):  # also stops child processes of the case
        os.killpg(child, signal.SIGKILL) if timed_out else None
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if timed_out:
        return "broken", f"hangs: no result after {target.timeout_s:g} s"
    if os.WIFSIGNALED(status):
        return "broken", f"crashes with {signal.Signals(os.WTERMSIG(status)).name}: {_last_output(folder)}"
    if not content:
        return "broken", f"ends with exit code {os.waitstatus_to_exitcode(status)}: {_last_output(folder)}"
    outcome, text, baseline = json.loads(content)
    used = usage.ru_maxrss * 1024 - baseline
    if outcome != "broken" and used > target.memory_bytes:
        return "broken", f"uses {used >> 20} MiB of memory"
    if outcome != "broken" and (left := _left_behind(folder)):
        return "broken", f"writes {left[0]}"
    return outcome, text


def _left_behind(folder: Path) -> list[str]:
    """Return the files that a case has written outside of its output folders."""
    return sorted(
        str(path.relative_to(folder))
        for name in ("here", "temporary", FORBIDDEN_FOLDER)
        for path in (folder / name).rglob("*")
        if not path.is_dir()
    )


def _last_output(folder: Path) -> str:
    lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def _child(target: Target, seeds: Any, folder: Path, case: str, writer: int) -> None:
    """Run the case in the child process, report the outcome, and end the process."""
    try:
        os.setsid()
        baseline = peak_memory_bytes()
        result = json.dumps((*_run_attempt(target, seeds, folder, case), baseline))
        os.write(writer, result.encode())
    finally:
        os._exit(0)


def _run_attempt(target: Target, seeds: Any, folder: Path, case: str) -> tuple[str, str]:
    with (folder / "output.txt").open("wb") as output, open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder / "here")
    os.environ |= {"HOME": str(folder / "here"), "TMPDIR": str(folder / "temporary")}
    os.environ["EDGEREC_CACHE"] = str(folder / "cache")
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    violations: list[str] = []
    try:
        damaged = target.make(Random(case), seeds, folder / "input")
        before = _listing(folder / "input")
        sys.addaudithook(_watch(folder, target.network, violations))
        try:
            target.use(damaged, folder / "out")
            outcome, message = "accepted", ""
        except EdgerecError as error:
            outcome, message = "refused", str(error)
            violations += filter(None, [error_fault(message)])
        if _listing(folder / "input") != before:
            violations.append("changes its input")
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "broken", f"{error!r}"[:400] + f" at {frame.filename}:{frame.lineno}"
    return ("broken", f"{violations[0]}; {message}"[:600]) if violations else (outcome, message)


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*") if not path.is_dir())


def _watch(folder: Path, network: bool, violations: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that records writes to other folders, network connections and execution of code."""
    allowed = ("/dev/", "/proc/", *(str(folder / name) for name in ("out", "temporary", "cache", "output.txt")))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & _WRITING:
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(allowed) and "__pycache__" not in path:
                violations.append(f"opens {path} for writing")
        elif event in _NETWORK and not (network and _is_loopback(event, arguments)):
            violations.append(f"{event} {arguments[1:]}")
        elif event in _CODE or (event == "subprocess.Popen" and arguments[0] not in (sys.executable, "uname")):
            violations.append(f"{event} {arguments[0]!r}")

    return watch


def _is_loopback(event: str, arguments: tuple[Any, ...]) -> bool:
    address = arguments[0] if event.startswith("socket.get") else arguments[1]  # the first one is the socket
    host = address[0] if isinstance(address, tuple) and address else address
    return str(host) in ("127.0.0.1", "::1", "localhost", "")
