"""Check that all workers of a distributed training run are reachable, before TensorFlow connects to them.

TensorFlow waits for missing workers without a timeout, and does not report which ones are missing. Therefore, the chief
(the first worker) first connects to every other worker. All workers wait until the chief has reached all of them.
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
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.host_port import parse_host_port

# Timeout for receiving a message from another worker, in seconds.
_HELLO_S = 5.0
# Pause between two attempts to connect, in seconds.
_RETRY_S = 0.2
# Maximum length of a message between workers, in characters.
_MAX_MESSAGE = 1 << 16


@dataclass(frozen=True)
class Cluster:
    """Addresses of the processes that train one model together.

    Attributes:
        addresses: ``host:port`` of each worker; the first worker is the chief, which saves the run.
        index: position of this process in ``addresses``.
        chiefs: 1 if ``TF_CONFIG`` has a job ``chief``, 0 if the chief is worker 0.
    """

    addresses: tuple[str, ...]
    index: int
    chiefs: int = 0

    @classmethod
    def from_environment(cls) -> Cluster | None:
        """Return the cluster described by the environment variable ``TF_CONFIG``, or None if there is only one worker.

        Launchers for Kubernetes and Slurm set this variable.

        Raises:
            TrainError: ``TF_CONFIG`` is not valid.
        """
        text = os.environ.get("TF_CONFIG", "").strip()
        if not text:
            return None
        try:
            config = parse_json(text)
            jobs, task = config.get("cluster", {}), config.get("task", {})
            if not jobs:
                return None
            if unknown := set(jobs) - {"chief", "worker"}:
                raise ValueError(f"unknown job {min(unknown)!r}, expected 'worker', or 'chief' and 'worker'")
            chiefs, workers = ([str(address) for address in jobs.get(job, [])] for job in ("chief", "worker"))
            kind, number = task["type"], task["index"]
            if kind not in jobs or not 0 <= int(number) < len(jobs[kind]):
                raise ValueError(f"the cluster has no {kind} {number}")
            for address in chiefs + workers:
                parse_host_port(address)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainError(
                f"TF_CONFIG cannot be used ({error!s}): expected "
                '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": 0}}'
            ) from None
        cluster = cls((*chiefs, *workers), 0, len(chiefs))
        return replace(cluster, index=cluster.position(kind, int(number))) if len(cluster.addresses) > 1 else None

    @property
    def chief(self) -> bool:
        """True if this process is the chief, which saves the run."""
        return self.index == 0

    def position(self, job: str, task: int) -> int:
        """Convert a job name and task index from ``TF_CONFIG`` to an index in ``addresses``."""
        return task + (self.chiefs if job == "worker" else 0)

    def name(self, index: int) -> str:
        """Return a worker's name and address for messages."""
        return f"{'the chief' if index == 0 else f'worker {index}'} ({self.addresses[index]})"


def handshake(cluster: Cluster, versions: dict[str, Any], wait_s: float) -> None:
    """Wait until all workers in the cluster are reachable, and check that their configurations match.

    Args:
        cluster: the expected workers.
        versions: a dictionary that maps package names to versions, which must be equal in all workers.
        wait_s: timeout in seconds.

    Raises:
        TrainError: a worker was not reachable in time, or its package versions or ``TF_CONFIG`` differ.
    """
    deadline = time.monotonic() + wait_s
    if cluster.chief:
        _call_workers(cluster, versions, deadline, wait_s)
    else:
        _wait_for_chief(cluster, versions, deadline, wait_s)


def _call_workers(cluster: Cluster, versions: dict[str, Any], deadline: float, wait_s: float) -> None:
    """Connect to all workers, compare their package versions, and send the outcome to each worker."""
    with contextlib.ExitStack() as stack:
        replies = [_call(cluster, index, stack, deadline, wait_s) for index in range(1, len(cluster.addresses))]
        differences = (
            _difference(cluster, index, versions, reply) for index, (_, reply) in enumerate(replies, start=1)
        )
        error = next(filter(None, differences), "")
        for stream, _ in replies:
            with contextlib.suppress(OSError):
                _send(stream, {"error": error})
    if error:
        raise TrainError(error)


def _call(
    cluster: Cluster, index: int, stack: contextlib.ExitStack, deadline: float, wait_s: float
) -> tuple[IO[str], dict[str, Any]]:
    """Connect to a worker, retrying until it replies. Return the open stream and the reply."""
    error: object = "there is no edgerec worker at this address"
    while True:
        try:
            connection = socket.create_connection(parse_host_port(cluster.addresses[index]), timeout=_HELLO_S)
            stream = stack.enter_context(_stream(connection, time.monotonic() + _HELLO_S))
            _send(stream, {"cluster": cluster.addresses})
            if (reply := _receive(stream)) is not None:
                return stream, reply
        except OSError as refused:
            error = refused
        if time.monotonic() > deadline:
            raise TrainError(
                f"{cluster.name(index)} did not answer within {wait_s:g} s ({error}): check that it was started with "
                "the same TF_CONFIG, or increase train.workers_wait_s"
            )
        time.sleep(_RETRY_S)


def _difference(cluster: Cluster, index: int, versions: dict[str, Any], reply: dict[str, Any]) -> str:
    """Return an error message if a worker has the wrong index or package versions, otherwise an empty string."""
    if reply.get("index") != index:
        return (
            f"{cluster.name(index)} replied that it is worker {reply.get('index')}: give all workers the same cluster "
            "in TF_CONFIG"
        )
    worker, theirs = cluster.name(index), reply.get("about")
    for key, value in versions.items():
        other = theirs.get(key) if isinstance(theirs, dict) else None
        if other != value:
            return f"{worker} has {key} {other}, but the chief has {value}: install the same version on all"
    return ""


def _wait_for_chief(cluster: Cluster, versions: dict[str, Any], deadline: float, wait_s: float) -> None:
    """Wait until the chief connects, send the package versions, and wait until the chief has reached all workers."""
    with _listening(cluster) as server:
        while True:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                raise TrainError(
                    f"{cluster.name(0)} did not connect within {wait_s:g} s: check that it was started with the same "
                    "TF_CONFIG, or increase train.workers_wait_s"
                ) from None
            with _stream(connection, time.monotonic() + _HELLO_S) as stream:
                hello = _receive(stream)
                if hello is None or hello.get("cluster") != list(cluster.addresses):
                    continue
                try:
                    _send(stream, {"index": cluster.index, "about": versions})
                except OSError:
                    continue
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                verdict = _receive(stream)
            if verdict is None:
                raise TrainError(
                    f"the connection to {cluster.name(0)} was closed, because the chief was stopped or a worker is "
                    "missing: start all workers again"
                )
            if verdict.get("error"):
                raise TrainError(str(verdict["error"]))
            return


def _listening(cluster: Cluster) -> socket.socket:
    host, port = parse_host_port(cluster.addresses[cluster.index])
    try:
        return socket.create_server((host, port))
    except OSError:
        # The host name may belong to a proxy, so listen on all interfaces, as TensorFlow does.
        try:
            return socket.create_server(("", port))
        except OSError as error:
            raise TrainError(
                f"Cannot listen on port {port} from TF_CONFIG ({error.strerror}): check whether another process uses it"
            ) from None


@contextlib.contextmanager
def _stream(connection: socket.socket, deadline: float) -> Iterator[IO[str]]:
    connection.settimeout(max(0.1, deadline - time.monotonic()))
    with connection, connection.makefile("rw", encoding="utf-8", newline="\n") as stream:
        yield stream


def _send(stream: IO[str], value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _receive(stream: IO[str]) -> dict[str, Any] | None:
    """Return the next message, or None if the connection was closed or the message is not a JSON object."""
    try:
        value = parse_json(stream.readline(_MAX_MESSAGE))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
