"""A uvicorn server in a thread, with limits on the number and duration of connections.

uvicorn's option ``limit_concurrency`` counts idle connections, so they can block new requests. uvicorn also has no time
limit for incomplete headers or slow clients.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgerec.http.auth import MAX_HEADER_BYTES

if TYPE_CHECKING:
    _Protocol = H11Protocol
else:
    _Protocol = object

log = logging.getLogger(__name__)

# Timeout in seconds for receiving a request's headers, and for sending data to a slow client.
SLOW_S = 10.0
# Maximum number of pipelined requests, i.e. requests sent before the first response is received.
MAX_PIPELINED = 16
# Response to a request that is not HTTP.
_INVALID_REQUEST = b'{"error": "the request is not valid HTTP: check the client"}'
# Maximum time in seconds to wait for the server's thread after all connections have been aborted.
STOP_S = 2.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits on the connections of a server.

    Attributes:
        connections: maximum number of open connections.
        connections_per_address: maximum number of open connections from one address. Browsers open up to six for each
            page.
        grace_s: maximum time in seconds to wait for unfinished requests before the server aborts all connections.
    """

    connections: int = 128
    connections_per_address: int = 64
    grace_s: float = 0.4


class _MergingTransport:
    """A transport that combines the head and the body of a response, which uvicorn writes separately, in one packet.

    A small write is delayed until the next write, or until the next iteration of the event loop.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._pending = transport, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._pending or len(data) > MAX_HEADER_BYTES:
            data, self._pending = self._pending + data, b""
            self._transport.write(data)
        else:
            self._pending = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pending and not self._transport.is_closing():
            self._transport.write(self._pending)
        self._pending = b""


class _Limited(_Protocol):
    """Mixin that adds timeouts and a maximum number of open connections to a uvicorn protocol.

    If there are too many connections from one address or in total, the oldest idle connection is closed.
    Idle connections therefore cannot block new ones.
    """

    limits = ConnectionLimits()
    _since_s = 0.0
    _request_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _idle_bytes = 0
    _discards = False

    def connection_made(self, transport: Any) -> None:
        """Register the new connection, close an idle one if the limit is exceeded, and start the header timeout."""
        merging: Any = _MergingTransport(transport, self.loop)
        super().connection_made(merging)
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
        """Parse the received bytes. The header timeout runs while a request's headers are incomplete."""
        # h11 would store all bytes that follow an invalid request.
        if self._discards:
            return
        super().data_received(data)
        is_idle = self.idle
        # httptools limits neither the size of the headers nor the number of pipelined requests.
        self._idle_bytes = self._idle_bytes + len(data) if is_idle else 0
        if self._idle_bytes > MAX_HEADER_BYTES or len(getattr(self, "pipeline", ())) > MAX_PIPELINED:
            self.transport.abort()
        if is_idle and self._request_timer is None:
            self._request_timer = self.loop.call_later(SLOW_S, self.transport.abort)
        elif not is_idle and self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def send_400_response(self, msg: str) -> None:
        """Respond to an invalid request with an error in JSON, and close the connection.

        uvicorn itself would send plain text.

        If complete requests precede the invalid one, the error is not sent, because the client would take it for the
        response to one of them. Instead, further bytes are discarded, and the connection is closed after the responses.
        If the body of the last request is invalid, the connection is closed immediately.
        """
        if not self.idle and not self.cycle.more_body:
            self.cycle.keep_alive, self._discards = False, True
            return
        # The rest of a request's body is invalid, so the connection can no longer be used.
        if getattr(self, "pipeline", ()) or (not self.idle and self.cycle.response_started):
            self.transport.close()
            return
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
        self.transport.write(head + b"%d\r\n\r\n%s" % (len(_INVALID_REQUEST), _INVALID_REQUEST))
        self.transport.close()

    def pause_writing(self) -> None:
        """Start the send timeout when the send buffer is full."""
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(SLOW_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the send timeout, because the client is receiving data again."""
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
    """An HTTP connection with limits, which uses the pure-Python parser h11."""


def _fast_connection() -> type[asyncio.Protocol]:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return LimitedConnection
    return type("FastLimitedConnection", (_Limited, HttpToolsProtocol), {})


def _fast_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


class Server:
    """A web server that runs an ASGI application in a background thread."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        name: str = "the web page",
        limits: ConnectionLimits | None = None,
        fast: bool = False,
    ) -> None:
        """Create the server without starting it.

        Args:
            app: ASGI application. Lifespan events are not sent to the application.
            listener: listening socket, which is closed when the server stops.
            name: name of the server in log messages.
            limits: limits on the number and duration of connections.
            fast: whether to use the parser httptools and the event loop uvloop, which are written in C, if they are
                installed.
        """
        self._listener, self._name, self._limits = listener, name, limits or ConnectionLimits()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_factory = _fast_loop_factory() if fast else None
        connection = _fast_connection() if fast else LimitedConnection
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=type("Connection", (connection,), {"limits": self._limits}),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,  # Any client could fill the log with invalid requests.
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
        """Stop the server, abort the remaining connections and wait for the server's thread."""
        self._uvicorn.should_exit = True
        self._thread.join(self._limits.grace_s)
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._abort_connections)
            self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.warning("the server of %s does not stop: its thread is abandoned", self._name)
        self._listener.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        except asyncio.CancelledError:
            raise
        except Exception as error:  # An error in the server must not stop the camera.
            log.error("the server of %s failed: %s", self._name, error)

    def _abort_connections(self) -> None:
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
