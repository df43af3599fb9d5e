"""Waking a library that waits for a peer: the sockets that it opened are found, and shut down."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Where the system lists this process's open files; elsewhere nothing is found, and a wait ends by its own timeout.
_OPEN = Path("/proc/self/fd")


class PeerSocket:
    """The socket that another library opened to a port in :meth:`found`, if there is exactly one.

    It is held by a descriptor of our own, so that it stays the same one whatever that library does.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    @contextlib.contextmanager
    def found(self, port: int) -> Iterator[None]:
        """Look for the socket that the block opens. When others open some to that port meanwhile, none is taken."""
        before = _inodes()
        yield
        new = {inode: number for inode, number in _inodes().items() if inode not in before}
        held = [one for one in map(_held, new.values()) if one is not None]
        mine = [one for one in held if _port(one) == port]
        for one in held:
            if len(mine) != 1 or one is not mine[0]:
                one.close()
        self._socket = mine[0] if len(mine) == 1 else None

    def shut_down(self) -> None:
        """Whoever waits for the peer sees it gone."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()


def _inodes() -> dict[str, int]:
    """This process's sockets with a descriptor of each."""
    found = {}
    with contextlib.suppress(OSError):
        for number in os.listdir(_OPEN):
            with contextlib.suppress(OSError):
                if (name := os.readlink(_OPEN / number)).startswith("socket:"):
                    found[name] = int(number)
    return found


def _held(number: int) -> socket.socket | None:
    """The socket of that descriptor, by another one."""
    try:
        copy = os.dup(number)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def _port(one: socket.socket) -> int:
    """The peer's port; 0 where there is none."""
    try:
        address = one.getpeername()
    except OSError:
        return 0
    return address[1] if isinstance(address, tuple) else 0
