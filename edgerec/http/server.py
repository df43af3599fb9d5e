"""A uvicorn server in a thread, with limits on the number and duration of connections.

uvicorn's own ``limit_concurrency`` rejects new requests while idle connections are open, and uvicorn has no time limit
for incomplete headers or slow clients.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgerec.http.auth import MAX_HEADER_BYTES

# The type checker knows the base class of the mixin.
if TYPE_CHECKING:
    _Protocol = H11Protocol
else:
    _Protocol = object

log = logging.getLogger(__name__)

# Timeout in seconds for receiving a request's headers and for sending pending data to a client.
SLOW_S = 10.0
# Maximum number of requests that a client may send before it receives the response to the first one.
MAX_PIPELINED = 16
# When the server stops, it waits this many seconds for its thread after it has aborted all connections.
STOP_S = 2.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits on the connections of a server.

    Attributes:
        connections: maximum number of open connections.
        connections_per_address: maximum number of open connections from one address. Browsers open up to six for each
            page.
        grace_s: time in seconds for unfinished requests when the server stops. Then, all connections are aborted.
    """

    connections: int = 128
    connections_per_address: int = 64
    grace_s: float = 0.4


class _Limited(_Protocol):
    """A mixin for uvicorn's connections that adds time limits, and a limit on the number of open connections.

    If there are too many connections from one address or in total, the oldest idle connection is closed. Idle
    connections therefore cannot prevent new connections.
    """

    limits = ConnectionLimits()
    _since_s = 0.0
    _request_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _idle_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Close an idle connection if there are too many, and start the timeout for the first request."""
        super().connection_made(transport)
        self._since_s = self.loop.time()
        all_connections = [
            connection
            for connection in self.connections
            if isinstance(connection, _Limited) and not connection.transport.is_closing()
        ]
        address = self.client[0] if self.client else ""
        same_address = [
            connection
            for connection in all_connections
            if (connection.client[0] if connection.client else "") == address
        ]
        for connections, limit in (
            (same_address, self.limits.connections_per_address),
            (all_connections, self.limits.connections),
        ):
            if len(connections) > limit:
                idle = [connection for connection in connections if connection is not self and connection.idle]
                min(idle, key=lambda connection: connection._since_s, default=self).transport.abort()
                break
        self._request_timer = self.loop.call_later(SLOW_S, transport.abort)

    @property
    def idle(self) -> bool:
        """Whether the connection is idle, i.e. not processing a request."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Process received bytes, and start or cancel the timeout for an incomplete request."""
        super().data_received(data)
        is_idle = self.idle
        # httptools has no limits on the size of the headers and on the number of pipelined requests.
        self._idle_bytes = self._idle_bytes + len(data) if is_idle else 0
        if self._idle_bytes > MAX_HEADER_BYTES or len(getattr(self, "pipeline", ())) > MAX_PIPELINED:
            self.transport.abort()
        if is_idle and self._request_timer is None:
            self._request_timer = self.loop.call_later(SLOW_S, self.transport.abort)
        elif not is_idle and self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def pause_writing(self) -> None:
        """Start the send timeout when the send buffer is full."""
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(SLOW_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the send timeout because the client has received the data."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel both timeouts."""
        for timer in (self._request_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class LimitedConnection(_Limited, H11Protocol):
    """A limited HTTP connection with the parser h11, which is written in Python."""


def fast_connection() -> type[asyncio.Protocol]:
    """Return the class of a limited HTTP connection with the parser httptools, or with h11 if that is not installed.

    httptools, which is written in C, needs half the time of h11 for large bodies.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return LimitedConnection
    return type("FastLimitedConnection", (_Limited, HttpToolsProtocol), {})


class Server:
    """A web server that runs an application in its own thread."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        name: str = "the web page",
        limits: ConnectionLimits | None = None,
        connection: type[asyncio.Protocol] = LimitedConnection,
    ) -> None:
        """Prepare the server.

        Args:
            app: the application. Its lifespan events are not used.
            listener: listening socket, which is closed when the server stops.
            name: name of the server for log messages.
            limits: limits on the connections.
            connection: class of the connections.
        """
        self._listener, self._name, self._limits = listener, name, limits or ConnectionLimits()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=type("Connection", (connection,), {"limits": self._limits}),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,  # Invalid requests are not logged, because any client can send them.
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=max(1, math.ceil(self._limits.grace_s)),
            )
        )
        self._thread = threading.Thread(target=self._run, name="edgerec-web", daemon=True)

    @property
    def running(self) -> bool:
        """Whether the server's thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the server's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the server, abort any remaining connections and wait for the thread."""
        self._uvicorn.should_exit = True
        self._thread.join(self._limits.grace_s)
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._abort_connections)
            self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.warning("the server of %s does not stop: its thread is abandoned", self._name)
        self._listener.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        except asyncio.CancelledError:
            raise
        except Exception as error:  # The camera continues without the web page.
            log.error("the server of %s failed: %s", self._name, error)

    def _abort_connections(self) -> None:
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
