"""Send requests to the agent on a device, and receive its replies, as one JSON object per line."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from edgerec.deploy.agent.installation import AGENT
from edgerec.deploy.agent_archive import RUN_ARCHIVE, agent_archive
from edgerec.deploy.device import PREFIX_RULE, DeviceFacts, is_valid_prefix
from edgerec.deploy.replies import JobResult, StatusReply, StepReply, check_reply, invalid_reply
from edgerec.deploy.ssh import Command, Connection, ConnectionLostError
from edgerec.errors import DeployError
from edgerec.utils.atomic import sha256
from edgerec.utils.bounded_parsing import parse_json

# Minimum Python version that can run the agent.
MIN_PYTHON = (3, 9)
# Timeout in seconds for a reply from a device, which may need minutes to compute the digests of its files.
REPLY_TIMEOUT_S = 300.0
# Timeout in seconds for the next log line of a job, which must exceed the duration of an installation by pip.
JOB_TIMEOUT_S = 3600.0
# Number of lines of the camera's log and number of characters of each line that the host shows after an error.
MAX_LOG_LINES, MAX_LOG_CHARACTERS = 100, 1000
# Maximum length, in characters, of the name or state of a step.
MAX_STEP_NAME_CHARACTERS = 20


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
    """A connection to an agent process on a device.

    Attributes:
        label: display name of the device.
    """

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
        self.label = device.label
        archive = agent_archive()
        installed = sha256(archive) == facts.agent_digest
        python = agent_python(facts, device.label)
        sudo = "sudo -n " if facts.root == "sudo" else ""
        if installed:
            program = shlex.quote(posixpath.join(device.prefix, AGENT))
        else:
            # The compressed archive fits into the pipe to ssh, so this program can report the output of a faulty device
            # that never reads its input.
            compressed = zlib.compress(archive, 9)
            program = f"-c {shlex.quote(RUN_ARCHIVE)} {len(compressed)}"
        # Without -I, Python would import modules from the user's home folder.
        self._command: Command = connection.command(
            f"exec {sudo}{shlex.quote(python)} -I {program} {arguments} --prefix {shlex.quote(device.prefix)}"
        )
        if not installed:
            self._command.write(compressed)

    def request(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            ConnectionLostError: the connection was lost.
            DeployError: the agent reported an error.
        """
        self.send(do, **values)
        return self.reply()

    def status(self) -> StatusReply:
        """Query the status of the device. Raises the same errors as :meth:`request`."""
        reply = check_reply(self.label, self.request("status"), StatusReply)
        self._check_releases(reply["release"], reply["previous"], *reply["releases"])
        return reply

    def _check_releases(self, *releases: str) -> None:
        for release in releases:
            if not re.fullmatch(r"([0-9a-f]{16})?", release):
                raise invalid_reply(self.label, "a release ID is not 16 hexadecimal digits")

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
            if self._command.input_timed_out:
                raise DeployError(
                    f"{self.label} does not read its input: restart the device, and run the command again"
                )
            # A negative exit code means that ssh was killed by this program.
            if reason and self._command.code is not None and 0 <= self._command.code != 255:
                raise DeployError(f"the agent on {self.label} failed: {reason[-1]}")
            raise ConnectionLostError(
                f"the connection to {self.label} was lost: check the network, and run the command again; files that "
                "have arrived are not sent again",
                step="send",
            )
        try:
            value = parse_json(line)
        except ValueError:
            raise DeployError(
                f"{self.label} sent invalid data ({line[:80]!r}): check that its shell's login scripts print nothing"
            ) from None
        if not isinstance(value, dict):
            raise DeployError(f"{self.label} sent invalid data: check that its shell's login scripts print nothing")
        if "error" in value:
            raise agent_error(self.label, value)
        return value

    def replies(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of a job's log: :class:`StepReply`, and at the end ``result`` with a :class:`JobResult`."""
        while "result" not in (value := self.reply(JOB_TIMEOUT_S)):
            check_reply(self.label, value, StepReply)
            yield value
        result = check_reply(self.label, value["result"], JobResult)
        self._check_releases(result["release"], result["previous"])
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
        step=str(value.get("step", ""))[:MAX_STEP_NAME_CHARACTERS],
        restored=value.get("restored") is True,
        log=lines,
    )
