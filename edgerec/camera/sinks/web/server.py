"""Uvicorn in a thread, with limits on what a connection may take."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgerec.camera.sinks.web.auth import MAX_HEADER_BYTES

log = logging.getLogger(__name__)

# Maximum number of open connections in total, and per address. A browser opens up to six connections for each page.
MAX_CONNECTIONS = 128
MAX_CONNECTIONS_PER_ADDRESS = 64
# To send a whole request, or to take what was sent.
SLOW_S = 10.0
# What is still open so long after the end was asked for is cut off; then the thread has as long to end.
GRACE_S = 0.4
STOP_S = 2.0


class Connection(H11Protocol):
    """A connection with time limits for the request and the response, and a limit on the number of connections.

    If there are too many connections from one address or in total, the oldest idle connection is closed. Idle
    connections therefore cannot prevent new connections.
    """

    _since_s = 0.0
    _late: asyncio.TimerHandle | None = None
    _full: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Close an idle connection if there are too many, and start the time limit for the first request."""
        super().connection_made(transport)
        self._since_s = self.loop.time()
        everybody = [one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing()]
        address = self.client[0] if self.client else ""
        same = [one for one in everybody if (one.client[0] if one.client else "") == address]
        for connections, most in ((same, MAX_CONNECTIONS_PER_ADDRESS), (everybody, MAX_CONNECTIONS)):
            if len(connections) > most:
                idle = [one for one in connections if one is not self and one.idle]
                min(idle, key=lambda one: one._since_s, default=self).transport.abort()
                break
        self._late = self.loop.call_later(SLOW_S, transport.abort)

    @property
    def idle(self) -> bool:
        """Whether no request is being processed."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Process received bytes, and start or stop the time limit, which applies until the headers are complete."""
        super().data_received(data)
        waits = self.idle
        if waits and self._late is None:
            self._late = self.loop.call_later(SLOW_S, self.transport.abort)
        elif not waits and self._late is not None:
            self._late.cancel()
            self._late = None

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        if self._full is None:
            self._full = self.loop.call_later(SLOW_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It took what waited."""
        super().resume_writing()
        if self._full is not None:
            self._full.cancel()
            self._full = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the times."""
        for timer in (self._late, self._full):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class Server:
    """Serves an application on a socket that listens already, from :meth:`start` to :meth:`stop`."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,  # what strangers send is not worth a line
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="edgerec-web", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End, also in front of clients that do not; the thread is gone after it."""
        self._uvicorn.should_exit = True
        self._thread.join(GRACE_S)
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._cut)
            self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.warning("the web page's server does not end: left alone")
        self._listener.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the camera goes on without its page
            log.error("the web page's server failed: %s", error)

    def _cut(self) -> None:
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
