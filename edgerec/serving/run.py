"""Run the HTTP server for a bundle until Ctrl-C is pressed or SIGTERM arrives."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from types import TracebackType
from urllib.parse import quote

from edgerec.camera.interrupts import Interrupts, raise_on_signals
from edgerec.camera.service_notifier import ServiceNotifier
from edgerec.errors import EdgerecError
from edgerec.http.server_address import allowed_names, listen, server_url
from edgerec.http.token import configured_token, required_token
from edgerec.serving.config import ServeConfig
from edgerec.utils.allocator import return_freed_memory, reuse_large_blocks, use_one_malloc_arena
from edgerec.utils.optional import require
from edgerec.utils.secret_references import warn_about_secrets

log = logging.getLogger(__name__)

# Maximum number of open connections.
MAX_CONNECTIONS = 512
# Maximum number of open connections per IP address. Many clients may share the address of a proxy.
MAX_CONNECTIONS_PER_ADDRESS = 256
# Maximum time in seconds to wait for unfinished requests when the server stops.
GRACE_S = 10.0
# Interval in seconds at which the main thread checks whether the server is running.
POLL_S = 0.1
# Interval in seconds at which freed memory is returned to the operating system.
RETURN_MEMORY_S = 30.0


class ClassificationServer:
    """An HTTP server that classifies images in a background thread until :meth:`close` is called.

    Attributes:
        address: the server's URL without the token.
        token: token that clients must send, or None if no token is required.
        token_is_generated: whether the token was generated because none was configured.

    >>> with ClassificationServer(ServeConfig(bundle="signs-rpi")) as server:   # doctest: +SKIP
    ...     print(server.address)
    """

    def __init__(self, config: ServeConfig) -> None:
        """Open the bundle and start the server.

        Raises:
            EdgerecError: the bundle, the token or the address cannot be used.
            MissingExtraError: a required package is not installed.
        """
        for module in ("starlette", "uvicorn", "python_multipart", "cv2"):
            require(module)
        from edgerec.http.server import ConnectionLimits, Server
        from edgerec.serving.app import SERVER, TOKEN_VARIABLE, open_pool, protected_app

        host, port = config.host_port
        configured = configured_token(config.token, TOKEN_VARIABLE, host, SERVER)
        self.token = required_token(configured, host, SERVER)
        self.token_is_generated = self.token is not None and configured is None
        listener = listen(host, port, SERVER)
        try:
            manifest, self._pool = open_pool(config)
        except BaseException:
            listener.close()
            raise
        port = listener.getsockname()[1]
        self.address = server_url(host, port)
        app = protected_app(
            manifest, self._pool, config.max_body_bytes, token=self.token, names=allowed_names(host), port=port
        )
        self._server = Server(
            app,
            listener,
            name=SERVER,
            limits=ConnectionLimits(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, GRACE_S),
            fast=True,
        )
        self._server.start()
        log.info("the server is at %s", self.address)

    @property
    def url(self) -> str:
        """URL of the server, including the token. Do not log this URL."""
        return self.address + (f"?token={quote(self.token, safe='')}" if self.token else "")

    @property
    def running(self) -> bool:
        """Whether the server accepts requests."""
        return self._server.running

    @property
    def healthy(self) -> bool:
        """Whether the server accepts requests and none of its workers is hung."""
        return self._server.running and self._pool.healthy

    @property
    def classified(self) -> int:
        """Number of classified images."""
        return self._pool.classified

    def __enter__(self) -> ClassificationServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish the pending requests, then stop the server and its threads."""
        self._server.stop()
        self._pool.close()


class _StopFlag:
    """A flag that a signal handler can set safely, because no lock is needed."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True


def serve(config: ServeConfig) -> None:
    """Classify images over HTTP until the user stops the server.

    This is the implementation of ``edgerec serve``, including the notifications to the service manager. In the main
    thread, Ctrl-C and SIGTERM stop the server after the pending requests are finished.

    While the server runs, OpenCV uses one thread per image. New threads in this process share one glibc malloc arena,
    even after the server has stopped.

    Raises:
        EdgerecError: the bundle, the token or the address cannot be used, or the server failed.
        MissingExtraError: a required package is not installed.
    """
    with raise_on_signals():
        use_one_malloc_arena()
        reuse_large_blocks()
        cv2 = require("cv2")
        threads = cv2.getNumThreads()
        # OpenCV's threads would compete with the worker threads for the CPUs.
        cv2.setNumThreads(1)
        stop = _StopFlag()
        try:
            with suppress(KeyboardInterrupt), Interrupts(stop.set):
                _run_server(config, stop)
        finally:
            cv2.setNumThreads(threads)


def _run_server(config: ServeConfig, stop: _StopFlag) -> None:
    service = ServiceNotifier.from_environment()
    with ClassificationServer(config) as server:
        warn_about_secrets([], [config.token or ""])
        if server.token_is_generated:
            print(f"the server's generated token: {server.token}", file=sys.stderr, flush=True)
        service.ready()
        returned_s = time.monotonic()
        while not stop.is_set:
            time.sleep(POLL_S)
            if not server.running:
                raise EdgerecError("the server has stopped because of an error: see the log, and start it again")
            if server.healthy:
                service.alive()
            if time.monotonic() - returned_s >= RETURN_MEMORY_S:
                return_freed_memory()
                returned_s = time.monotonic()
        service.stopping()
    log.info("the server has stopped after %d classified images", server.classified)
