"""Send requests to the agent on a device, and receive its replies, as one JSON object per line."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, TypedDict

from edgerec.deploy.device import PREFIX_RULE, DeviceFacts, is_valid_prefix
from edgerec.deploy.ssh import Command, Connection, ConnectionLostError
from edgerec.errors import DeployError
from edgerec.utils.atomic import sha256
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.json_types import check_type

# Minimum Python version that can run the agent.
MIN_PYTHON = (3, 9)
# Timeout in seconds for a reply of a device, which may need minutes to compute the digests of its files.
REPLY_TIMEOUT_S = 300.0
# Timeout in seconds for the next log line of a job, which must exceed the duration of an installation by pip.
JOB_TIMEOUT_S = 3600.0
# This program reads the agent's source from stdin, so that a dry run does not write files to the device.
_RUN_SOURCE = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv.pop(1))), 'agent.py', 'exec'))"
# Number of lines of the camera's log and number of characters of each line that the host shows after an error.
MAX_LOG_LINES, MAX_LOG_CHARACTERS = 100, 1000


class StatusReply(TypedDict):
    """The entries of the agent's status that an operation uses. See :class:`~edgerec.deploy.device.DeviceStatus`.

    ``config``, ``signers``, ``unit`` and ``agent`` are digests of files, or empty strings if the files are missing.
    """

    release: str
    previous: str
    releases: list[str]
    on_trial: bool
    service: str
    require_signature: bool
    config: str
    auto_source: bool
    signers: str
    unit: str
    agent: str
    unit_prefix: str
    foreign_unit: bool


class StepReply(TypedDict):
    """A step of a job. See :class:`~edgerec.deploy.operation.Step`."""

    step: str
    state: str
    text: str
    done: int
    total: int


class JobResult(TypedDict):
    """Result of a job. See :class:`~edgerec.deploy.operation.DeployResult`."""

    release: str
    previous: str
    changed: bool


def agent_source() -> bytes:
    """Return the agent's source code."""
    return files("edgerec.deploy").joinpath("agent.py").read_bytes()


def agent_python(facts: DeviceFacts, label: str) -> str:
    """Return the path of a Python interpreter on the device that can run the agent.

    Raises:
        DeployError: the device has no suitable Python interpreter.
    """
    for version, path in facts.pythons.items():
        if tuple(map(int, version.split("."))) >= MIN_PYTHON:
            return path
    versions = ", ".join(facts.pythons) or "no Python"
    raise DeployError(
        f"cannot use {label}: it has {versions}, but Python {'.'.join(map(str, MIN_PYTHON))} or newer is required; run "
        "sudo apt-get install python3 python3-venv",
        step="check",
    )


class Session:
    """A connection to an agent process on a device."""

    def __init__(self, connection: Connection, facts: DeviceFacts, arguments: str = "session") -> None:
        """Start the agent as root.

        Args:
            connection: an open connection.
            facts: properties of the device.
            arguments: command-line arguments of the agent, without ``--prefix``.

        Raises:
            DeployError: the device has no suitable Python interpreter, or the prefix is invalid.
        """
        device = connection.device
        if not is_valid_prefix(device.prefix):
            raise DeployError(f"the prefix {device.prefix!r} is invalid: use {PREFIX_RULE}")
        self._label = device.label
        source = agent_source()
        self.installed = sha256(source) == facts.agent_digest
        python = agent_python(facts, device.label)
        sudo = "sudo -n " if facts.root == "sudo" else ""
        if self.installed:
            program = shlex.quote(posixpath.join(device.prefix, "agent.py"))
        else:
            program = f"-c {shlex.quote(_RUN_SOURCE)} {len(source)}"
        # Without -I, Python would import modules from the user's home folder.
        self._command: Command = connection.command(
            f"exec {sudo}{shlex.quote(python)} -I {program} {arguments} --prefix {shlex.quote(device.prefix)}"
        )
        if not self.installed:
            self._command.write(source)

    def request(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            ConnectionLostError: the connection was lost.
            DeployError: the agent reported an error.
        """
        self.send(do, **values)
        return self.reply()

    def status(self) -> dict[str, Any]:
        """Query the status of the device, and return a :class:`StatusReply`. Raise the errors of :meth:`request`."""
        reply = self.request("status")
        self.check(reply, StatusReply)
        self._check_releases(reply["release"], reply["previous"], *reply["releases"])
        return reply

    def check(self, reply: Any, expected: Any) -> None:
        """Check the type of a reply, or of an entry of a reply, in the same way as :func:`check_type`.

        Raises:
            DeployError: a value is missing or has the wrong type.
        """
        try:
            check_type(reply, expected)
        except ValueError as error:
            raise self._invalid_reply(str(error)) from None

    def _check_releases(self, *releases: str) -> None:
        for release in releases:
            if not re.fullmatch(r"([0-9a-f]{16})?", release):
                raise self._invalid_reply("a release is not a digest of 16 hexadecimal digits")

    def _invalid_reply(self, reason: str) -> DeployError:
        return DeployError(
            f"{self._label} sent an invalid reply ({reason}): run the command again, and check the device's storage if "
            "the error remains"
        )

    def send(self, do: str, **values: Any) -> None:
        """Send a request without waiting for the reply."""
        self._command.write(json.dumps({"do": do, **values}).encode() + b"\n")

    def write(self, content: bytes) -> None:
        """Send bytes that follow a request, e.g. the content of a file."""
        self._command.write(content)

    def reply(self, timeout_s: float = REPLY_TIMEOUT_S) -> dict[str, Any]:
        """Return the agent's next reply.

        Raises:
            ConnectionLostError: the connection was lost, or no reply arrived within ``timeout_s``.
            DeployError: the agent reported an error.
        """
        line = self._command.read_line(timeout_s)
        if line is None:
            reason = self._command.end().strip().splitlines()
            if self._command.code not in (255, None) and reason:
                raise DeployError(f"the agent on {self._label} failed: {reason[-1]}")
            raise ConnectionLostError(
                f"the connection to {self._label} was lost: check the network, and run the command again; files that "
                "have arrived are not sent again",
                step="send",
            )
        try:
            value = parse_json(line)
        except ValueError:
            raise DeployError(
                f"{self._label} sent invalid data ({line[:80]!r}): check that its shell's login scripts print nothing"
            ) from None
        if not isinstance(value, dict):
            raise DeployError(f"{self._label} sent invalid data: check that its shell's login scripts print nothing")
        if "error" in value:
            raise agent_error(self._label, value)
        return value

    def replies(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of a job's log: :class:`StepReply`, and at the end ``result`` with a :class:`JobResult`."""
        while "result" not in (value := self.reply(JOB_TIMEOUT_S)):
            self.check(value, StepReply)
            yield value
        self.check(value["result"], JobResult)
        self._check_releases(value["result"]["release"], value["result"]["previous"])
        yield value

    def kill(self) -> None:
        """Close the connection immediately, so that :meth:`reply` in another thread raises an error."""
        self._command.kill()

    def close(self) -> None:
        """Stop the agent process."""
        self._command.close()


def agent_error(label: str, value: Mapping[str, Any]) -> DeployError:
    """Convert an error that the agent reported into an exception."""
    log = value.get("log")
    lines = [str(line)[:MAX_LOG_CHARACTERS] for line in log[-MAX_LOG_LINES:]] if isinstance(log, list) else []
    return DeployError(
        f"{label}: {value['error']}",
        step=str(value.get("step", ""))[:20],
        restored=value.get("restored") is True,
        log=lines,
    )
