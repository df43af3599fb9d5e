"""Interrupt a library that is waiting for network data by shutting down the socket it opened."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Folder in which Linux lists the file descriptors of the current process.
_DESCRIPTORS = Path("/proc/self/fd")


class PeerSocket:
    """A socket opened by another library, kept so that it can be shut down.

    The object has its own duplicate of the file descriptor. The descriptor therefore refers to the same socket even
    after the library has closed its descriptor.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    @contextlib.contextmanager
    def detect(self, port: int) -> Iterator[None]:
        """Context manager that finds the only socket that is connected to ``port`` during the block."""
        before = _socket_descriptors_by_inode()
        yield
        new = {inode: number for inode, number in _socket_descriptors_by_inode().items() if inode not in before}
        sockets = [candidate for candidate in map(_duplicate, new.values()) if candidate is not None]
        matches = [candidate for candidate in sockets if _peer_port(candidate) == port]
        for candidate in sockets:
            if len(matches) != 1 or candidate is not matches[0]:
                candidate.close()
        self._socket = matches[0] if len(matches) == 1 else None

    def shut_down(self) -> None:
        """Shut down the socket so that a blocked read returns."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this object's duplicate of the file descriptor."""
        if self._socket is not None:
            self._socket.close()


def _socket_descriptors_by_inode() -> dict[str, int]:
    descriptors = {}
    with contextlib.suppress(OSError):
        for number in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):
                if (name := os.readlink(_DESCRIPTORS / number)).startswith("socket:"):
                    descriptors[name] = int(number)
    return descriptors


def _duplicate(number: int) -> socket.socket | None:
    """Duplicate a file descriptor and return a socket for the copy, or None if the descriptor is not usable."""
    try:
        copy = os.dup(number)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def _peer_port(connected: socket.socket) -> int:
    """Return the peer's port, or 0 if the socket is not connected."""
    try:
        address = connected.getpeername()
    except OSError:
        return 0
    return address[1] if isinstance(address, tuple) else 0
