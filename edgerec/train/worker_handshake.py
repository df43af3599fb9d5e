"""How the workers of a training find each other before TensorFlow connects them.

TensorFlow itself waits in silence, for ever, and does not say for whom. So the chief calls at each worker's address
first, and nobody goes on before all have answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from edgerec.errors import TrainError
from edgerec.utils.bounded import parse_json

# One who calls at a worker's address and says nothing is none of us.
_HELLO_S = 5.0
_AGAIN_S = 0.2
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Cluster:
    """The processes that train one model together.

    Attributes:
        addresses: ``host:port`` of each; the first is the chief's, who writes the run.
        index: which of them this process is.
        chiefs: 1 where ``TF_CONFIG`` has a job of its own for the chief, 0 where he is worker 0.
    """

    addresses: tuple[str, ...]
    index: int
    chiefs: int = 0

    @classmethod
    def from_environment(cls) -> Cluster | None:
        """The cluster that ``TF_CONFIG`` tells of, as Kubernetes' and Slurm's launchers set it; None without one."""
        text = os.environ.get("TF_CONFIG", "").strip()
        if not text:
            return None
        try:
            config = parse_json(text)
            jobs, task = config.get("cluster", {}), config.get("task", {})
            if not jobs:
                return None
            if others := set(jobs) - {"chief", "worker"}:
                raise ValueError(f"it has the job {min(others)!r}; expected worker, or chief and worker")
            chiefs, workers = ([str(address) for address in jobs.get(job, [])] for job in ("chief", "worker"))
            kind, number = task["type"], task["index"]
            if kind not in jobs or not 0 <= int(number) < len(jobs[kind]):
                raise ValueError(f"its task is {kind} {number}, of which the cluster has none")
            for address in chiefs + workers:
                _host_and_port(address)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainError(
                f"TF_CONFIG cannot be used ({error!s}): expected "
                '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": 0}}'
            ) from None
        found = cls((*chiefs, *workers), 0, len(chiefs))
        return replace(found, index=found.position(kind, int(number))) if len(found.addresses) > 1 else None

    @property
    def chief(self) -> bool:
        """Whether this process writes the run."""
        return self.index == 0

    def position(self, job: str, task: int) -> int:
        """The index of what ``TF_CONFIG`` and TensorFlow call so."""
        return task + (self.chiefs if job == "worker" else 0)

    def name(self, index: int) -> str:
        """A worker as a person finds it."""
        return f"{'the chief' if index == 0 else f'worker {index}'} ({self.addresses[index]})"


def handshake(cluster: Cluster, about: dict[str, Any], wait_s: float) -> None:
    """Return when all workers of the cluster are there.

    Args:
        cluster: who is expected.
        about: what must be the same in all of them, as versions of packages: JSON values.
        wait_s: how long to wait for the others, seconds.

    Raises:
        TrainError: somebody did not come in time, or is not whom the cluster expects.
    """
    deadline = time.monotonic() + wait_s
    if cluster.chief:
        _call(cluster, about, deadline, wait_s)
    else:
        _answer(cluster, about, deadline, wait_s)


def _call(cluster: Cluster, about: dict[str, Any], deadline: float, wait_s: float) -> None:
    with contextlib.ExitStack() as stack:
        found = [_called(cluster, index, stack, deadline, wait_s) for index in range(1, len(cluster.addresses))]
        differences = (_difference(cluster, index, about, answer) for index, (_, answer) in enumerate(found, start=1))
        wrong = next(filter(None, differences), "")
        for line, _ in found:
            with contextlib.suppress(OSError):
                _say(line, {"error": wrong})
    if wrong:
        raise TrainError(wrong)


def _called(
    cluster: Cluster, index: int, stack: contextlib.ExitStack, deadline: float, wait_s: float
) -> tuple[IO[str], dict[str, Any]]:
    """A worker's line and what it says of itself, as soon as it is there; others may be long in coming."""
    error: object = "it does not answer as a worker of edgerec"
    while True:
        try:
            connection = socket.create_connection(_host_and_port(cluster.addresses[index]), timeout=_HELLO_S)
            line = stack.enter_context(_lines(connection, time.monotonic() + _HELLO_S))
            _say(line, {"cluster": cluster.addresses})
            if (answer := _heard(line)) is not None:
                return line, answer
        except OSError as refused:
            error = refused
        if time.monotonic() > deadline:
            raise TrainError(
                f"{cluster.name(index)} did not come within {wait_s:g} s ({error}): was it started with the same "
                "TF_CONFIG? train.workers_wait_s says how long to wait"
            )
        time.sleep(_AGAIN_S)


def _difference(cluster: Cluster, index: int, about: dict[str, Any], answer: dict[str, Any]) -> str:
    if answer.get("index") != index:
        return f"{cluster.name(index)} says that it is worker {answer.get('index')}: give all the same cluster"
    theirs = answer.get("about")
    for key, value in about.items():
        found = theirs.get(key) if isinstance(theirs, dict) else None
        if found != value:
            return f"{cluster.name(index)} has {key} {found}, the chief {value}: install the same on all"
    return ""


def _answer(cluster: Cluster, about: dict[str, Any], deadline: float, wait_s: float) -> None:
    with _listening(cluster) as listener:
        while True:
            listener.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                raise TrainError(
                    f"{cluster.name(0)} did not come within {wait_s:g} s: was it started with the same TF_CONFIG? "
                    "train.workers_wait_s says how long to wait"
                ) from None
            with _lines(connection, time.monotonic() + _HELLO_S) as line:
                hello = _heard(line)
                if hello is None or hello.get("cluster") != list(cluster.addresses):
                    continue
                try:
                    _say(line, {"index": cluster.index, "about": about})
                except OSError:
                    continue
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                verdict = _heard(line)
            if verdict is None:
                raise TrainError(f"{cluster.name(0)} was stopped, or not all workers came within its time")
            if verdict.get("error"):
                raise TrainError(str(verdict["error"]))
            return


def _listening(cluster: Cluster) -> socket.socket:
    host, port = _host_and_port(cluster.addresses[cluster.index])
    try:
        return socket.create_server((host, port))
    except OSError:
        # The name is that of a service before this machine: TensorFlow's own server listens everywhere too.
        try:
            return socket.create_server(("", port))
        except OSError as error:
            raise TrainError(
                f"port {port} of TF_CONFIG cannot be listened at ({error.strerror}): does another training use it?"
            ) from None


@contextlib.contextmanager
def _lines(connection: socket.socket, deadline: float) -> Iterator[IO[str]]:
    connection.settimeout(max(0.1, deadline - time.monotonic()))
    with connection, connection.makefile("rw", encoding="utf-8", newline="\n") as line:
        yield line


def _say(line: IO[str], value: dict[str, Any]) -> None:
    line.write(json.dumps(value) + "\n")
    line.flush()


def _heard(line: IO[str]) -> dict[str, Any] | None:
    """What the other said; None when that is nothing, or nothing of ours."""
    try:
        value = parse_json(line.readline(_LONGEST_LINE))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address!r} is no HOST:PORT")
    return host.strip("[]"), int(port)
