"""A private network in which each test device has its own network namespace and IP address."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

_HOST = "10.77.0.1"


@dataclass(frozen=True)
class NetworkPlace:
    """Address of a device in a private network, with the commands to run programs there.

    Attributes:
        address: IP address of the device.
        enter: command prefix that runs a program in the device's network namespace.
        reach: command prefix that runs a program in the host's network namespace.
    """

    address: str
    enter: tuple[str, ...] = ()
    reach: tuple[str, ...] = ()


def can_create_networks() -> bool:
    """Return whether this process has the permissions to create network namespaces and bridges."""
    command = ["unshare", "--net", "ip", "link", "add", "bridge0", "type", "bridge"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class PrivateNetwork:
    """A context manager for an isolated network in which a bridge connects a host and several devices.

    Attributes:
        reach: command prefix that runs a program in the host's network namespace.
    """

    def __init__(self) -> None:
        """Create an object. The context manager creates the network."""
        self._stack = ExitStack()
        self._count = 1

    def __enter__(self) -> PrivateNetwork:
        self._hub = self._namespace()
        self.reach = _enter(self._hub)
        self._run(self.reach, "ip link add bridge0 type bridge")
        self._run(self.reach, f"ip address add {_HOST}/24 dev bridge0")
        self._run(self.reach, "ip link set bridge0 up")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self) -> NetworkPlace:
        """Connect another device to the network."""
        self._count += 1
        address, cable = f"10.77.0.{self._count}", f"cable{self._count}"
        process = self._namespace()
        enter = _enter(process)
        self._run(self.reach, f"ip link add {cable} type veth peer name eth0 netns {process.pid}")
        self._run(self.reach, f"ip link set {cable} master bridge0 up")
        self._run(enter, f"ip address add {address}/24 dev eth0")
        self._run(enter, "ip link set eth0 up")
        return NetworkPlace(address, enter, self.reach)

    def unused_address(self) -> str:
        """Return an IP address of this network that no device uses."""
        return "10.77.0.250"

    def _namespace(self) -> subprocess.Popen[bytes]:
        """Start a process in a new network namespace, which exists until the process ends."""
        process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        deadline_s = time.monotonic() + 30
        # The network namespace exists as soon as unshare has executed the program sleep.
        while "sleep" not in Path(f"/proc/{process.pid}/comm").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        self._run(_enter(process), "ip link set lo up")
        return process

    def _run(self, prefix: Sequence[str], command: str) -> None:
        subprocess.run([*prefix, *command.split()], check=True, stdin=subprocess.DEVNULL)


def _enter(process: subprocess.Popen[bytes]) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{process.pid}/ns/net", "--")
