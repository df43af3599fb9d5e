"""Run commands on a device over a shared SSH connection, with the OpenSSH client of the system.

Keys, jump hosts and the handling of unknown host keys are set in the user's SSH configuration.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from types import TracebackType
from typing import IO, Self

from edgerec.deploy.device import Device
from edgerec.errors import DeployError
from edgerec.utils.text import printable

# Interval in seconds at which ssh sends keepalive messages.
KEEPALIVE_S = 10
# Number of unanswered keepalive messages after which ssh closes the connection.
KEEPALIVE_COUNT = 3
MAX_LINE_BYTES = 4 << 20
MAX_ERROR_BYTES = 64 << 10
# Limits on the output of a script. The time limit starts at the first line, after a passphrase has been entered.
MAX_SCRIPT_LINES, MAX_SCRIPT_BYTES, MAX_SCRIPT_S = 1000, 1 << 20, 300.0
EXIT_S = 5.0
# Maximum time in seconds to wait until a device reads its input. Storing a large file on an SD card may take minutes.
WRITE_S = 300.0


class ConnectionLostError(DeployError):
    """Raised when the connection to a device is lost while a command runs."""


class Connection:
    """A context manager for an SSH connection to a device. All commands use the same connection.

    Attributes:
        sent_bytes: number of bytes written to the standard input of ``ssh``.
    """

    def __init__(self, device: Device) -> None:
        """Create a connection without connecting to the device."""
        self.device = device
        self.sent_bytes = 0
        self._master: Command | None = None
        self._commands: list[Command] = []
        self._folder = ""

    def __enter__(self) -> Self:
        if shutil.which("ssh") is None:
            raise DeployError(
                "ssh is not installed, so devices cannot be reached: run sudo apt-get install openssh-client"
            )
        address = self.device.address
        if not address or address.startswith("-") or re.search(r"[\s\0]", address):
            raise DeployError(f"{address!r} is not the address of a device: expected user@host")
        # The folder has a short path, because the path of a Unix socket is limited to about 104 bytes.
        self._folder = tempfile.mkdtemp(prefix="edgerec-ssh-", dir="/tmp" if os.path.isdir("/tmp") else None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for command in self._commands:
            command.kill()
            command.close()
        if self._master is not None:
            self._master.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def reopen(self) -> None:
        """Discard a lost connection, so that :meth:`open` can create a new connection."""
        if self._master is not None:
            self._master.kill()
            self._master.close()
            self._master = None
        with contextlib.suppress(OSError):
            os.unlink(f"{self._folder}/socket")

    def open(self, script: str, *arguments: str, end: str) -> list[str]:
        """Connect to the device, run a shell script, and return the lines that it prints.

        The connection remains open until the context manager exits.

        Args:
            script: script for POSIX sh.
            arguments: the script's arguments.
            end: line that marks the end of the output. The line is not returned.

        Raises:
            DeployError: the connection failed. The message contains the reason and a solution.
        """
        # The final command, cat, ends when stdin is closed, so ssh also ends if this process is killed.
        content = f"set -- {shlex.join(arguments)}\n{script}\nexec cat >/dev/null\n".encode()
        self._master = Command(self, ["-M"], "exec sh -s")
        self._master.write(content)
        lines: list[str] = []
        size, end_s = 0, 0.0
        # An interactive connection has no timeout, because the user may have to enter a passphrase.
        limit_s = None if self.device.interactive else self.device.connect_timeout_s + 30
        while (line := self._master.read_line(limit_s)) != end:
            if line is None:
                raise DeployError(self._explain(self._master.end()))
            if not lines:
                end_s = time.monotonic() + MAX_SCRIPT_S
            limit_s = self.device.connect_timeout_s + 30
            lines.append(line)
            size += len(line)
            if len(lines) > MAX_SCRIPT_LINES or size > MAX_SCRIPT_BYTES or time.monotonic() > end_s:
                raise too_much_output(self.device)
        return lines

    def command(self, command: str) -> Command:
        """Start a shell command on the device. Values in the command must be quoted to prevent shell injection."""
        self._commands.append(Command(self, ["-o", "ControlMaster=no"], command))
        return self._commands[-1]

    def options(self) -> list[str]:
        """Return the command-line options of ``ssh`` for this connection."""
        device = self.device
        values = {
            "ControlPath": f"{self._folder}/socket",
            "ControlPersist": "no",
            "ConnectTimeout": f"{device.connect_timeout_s:.0f}",
            "ServerAliveInterval": str(KEEPALIVE_S),
            "ServerAliveCountMax": str(KEEPALIVE_COUNT),
            "BatchMode": "no" if device.interactive else "yes",
            # Forwarding is disabled, so that a compromised device cannot use the user's SSH agent or display.
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
        }
        options = [part for name, value in values.items() for part in ("-o", f"{name}={value}")]
        if device.ssh_config is not None:
            options = ["-F", str(device.ssh_config), *options]
        if device.port is not None:
            options += ["-p", str(device.port)]
        return options

    def _explain(self, output: str) -> str:
        """Convert the error output of ``ssh`` into an error message with a solution."""
        name, address = self.device.label, self.device.address
        text = output.lower()
        host = address.rpartition("@")[2]
        if "host key verification failed" in text or "host key is known for" in text:
            if "identification has changed" in text or "has changed" in text:
                return (
                    f"cannot connect to {name}: its host key differs from the known one; if the device was "
                    f"reinstalled, run ssh-keygen -R {host}, otherwise do not connect"
                )
            return f"cannot connect to {name}: its host key is unknown; run ssh {address} once to check and accept it"
        if "permission denied" in text or "too many authentication failures" in text:
            return (
                f"cannot connect to {name}: permission denied; copy your public key to the device with ssh-copy-id "
                f"{address}, or load your key into the agent with ssh-add"
            )
        if "could not resolve" in text:
            return f"cannot connect to {name}: the host name {host} is unknown; check the address"
        if "connection refused" in text:
            return (
                f"cannot connect to {name}: connection refused; start the SSH server on the device, or check the port"
            )
        if "timed out" in text or not text.strip():
            return (
                f"cannot connect to {name}: no response within {self.device.connect_timeout_s:g} s; check that the "
                "device is switched on and connected to the network"
            )
        if "no route to host" in text or "unreachable" in text:
            return f"cannot connect to {name}: no route to the host; check the network and the address"
        lines = [line for line in output.splitlines() if line.strip()]
        return f"cannot connect to {name}: {printable(lines[-1].strip())}; try ssh {address} to see the reason"


def too_much_output(device: Device) -> DeployError:
    """Return the error for a device whose output exceeds a limit."""
    return DeployError(f"{device.label} sends too much output: check the login scripts of its shell")


def _is_ready(file: IO[bytes], event: int, timeout_s: float | None) -> bool:
    """Wait until a pipe can be read or written, or is closed. Return False after ``timeout_s`` seconds."""
    poll = select.poll()  # Unlike select(), poll() supports more than 1,024 open files.
    poll.register(file, event)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


class Command:
    """A command that runs on a device over SSH.

    Attributes:
        input_timed_out: whether ``ssh`` was killed because the device did not read its input.
    """

    def __init__(self, connection: Connection, options: list[str], command: str) -> None:
        """Start the command.

        Args:
            connection: connection that counts the bytes sent.
            options: additional options of ``ssh``.
            command: shell command on the device.
        """
        self._connection = connection
        self._buffer = b""
        self._writing = threading.Lock()
        self._errors = b""
        self.input_timed_out = False
        try:
            self._process = subprocess.Popen(
                ["ssh", *options, *connection.options(), connection.device.address, command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Unless ssh is interactive, it runs in a new session, so that Ctrl-C does not kill it.
                start_new_session=not connection.device.interactive,
            )
        except OSError as error:
            raise DeployError(f"ssh cannot be started ({error.strerror}): check the installation of OpenSSH") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._error_reader = threading.Thread(target=self._read_errors, name="edgerec-ssh-errors", daemon=True)
        self._error_reader.start()

    def write(self, content: bytes) -> None:
        """Write bytes to the command's standard input, and ignore a lost connection.

        If the device does not read the input for :data:`WRITE_S` seconds, ``ssh`` is killed.
        """
        view = memoryview(content)
        with self._writing, contextlib.suppress(BrokenPipeError):
            while view and not self._stdin.closed:
                if not _is_ready(self._stdin, select.POLLOUT, WRITE_S):
                    self.input_timed_out = True
                    self.kill()
                    return
                # The pipe is non-blocking, so only the bytes that fit into the pipe are written.
                written = os.write(self._stdin.fileno(), view)
                self._connection.sent_bytes += written
                view = view[written:]

    def _read_errors(self) -> None:
        """Keep only the end of the standard error output, because a faulty device may send unlimited output."""
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            while chunk := os.read(errors.fileno(), 1 << 16):
                self._errors = (self._errors + chunk)[-MAX_ERROR_BYTES:]

    def read_line(self, timeout_s: float | None) -> str | None:
        """Return the next line of standard output, or None at the end of the output or after ``timeout_s``.

        Raises:
            DeployError: the line is longer than :data:`MAX_LINE_BYTES`.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if not _is_ready(self._stdout, select.POLLIN, left_s):
                return None
            chunk = os.read(self._stdout.fileno(), 1 << 16)
            if not chunk:
                return None
            if len(self._buffer) > MAX_LINE_BYTES:
                raise too_much_output(self._connection.device)
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def close_input(self) -> None:
        """Close the command's standard input. If another thread is blocked while writing, kill ``ssh`` first."""
        if not self._writing.acquire(timeout=EXIT_S):
            self.kill()
            self._writing.acquire()
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._writing.release()

    def end(self) -> str:
        """Stop the command, and return its standard error output."""
        self.wait()
        self._stdout.close()
        # A process that ssh has started, such as a ProxyCommand, may keep the pipe open.
        self._error_reader.join(EXIT_S)
        return self._errors.decode(errors="replace")

    @property
    def code(self) -> int | None:
        """Exit code of ``ssh``, or None while ``ssh`` is running. Exit code 255 means that the connection failed."""
        return self._process.poll()

    def wait(self) -> int:
        """Close the command's standard input, wait until ``ssh`` exits, and return the exit code.

        If ``ssh`` does not exit within 5 s, it is killed.
        """
        self.close_input()
        try:
            return self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """Kill the local ``ssh`` process without waiting for the device."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Stop the command and close its pipes."""
        self.wait()
        self._stdout.close()
