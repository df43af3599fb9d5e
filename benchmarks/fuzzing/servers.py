"""A server on the loopback interface that calls a function for each connection and stops automatically."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

# Timeout of a connection in seconds.
PEER_S = 20.0


class Peers:
    """A server that passes each connection to ``serve``, one after the other, with a timeout."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="fuzz-server", daemon=True)

    def __enter__(self) -> Peers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PEER_S)

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connected:
                connected.settimeout(PEER_S)
                self._serve(connected)


def received(connected: socket.socket, end: bytes) -> bytes:
    """Return the received data up to ``end``, or until the peer closes the connection."""
    content = b""
    while end not in content and (more := connected.recv(65536)):
        content += more
    return content
