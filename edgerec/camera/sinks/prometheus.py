"""An HTTP server for Prometheus metrics at ``/metrics``.

``prometheus_client.start_http_server`` is not used, because it has neither a limit on the number of clients nor a time
limit for their requests.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any

from edgerec._version import __version__
from edgerec.camera.frame import Result
from edgerec.camera.pipeline import RunReport
from edgerec.camera.sinks.events import DecisionChanges, source_name
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.contract.decision import UNKNOWN
from edgerec.contract.manifest import Manifest
from edgerec.http.server_address import listen
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Upper bounds of the histogram buckets for the age of results, in seconds.
AGE_S = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
# Maximum number of clients, and maximum duration of a connection in seconds.
MAX_CLIENTS = 16
CLIENT_S = 10.0


class Prometheus:
    """Counts results and serves the counters as Prometheus metrics over HTTP.

    Attributes:
        port: server port.
    """

    closed = False
    name = "metrics"
    uses_images = False

    def __init__(
        self,
        manifest: Manifest,
        host: str = "127.0.0.1",
        port: int = 9464,
        counters: Callable[[], RunReport] | None = None,
        sources: Sequence[str] = (),
        *,
        regions: bool = False,
    ) -> None:
        """Start the HTTP server.

        Args:
            manifest: the bundle's manifest.
            host: address to listen on.
            port: port to listen on. 0 selects a free port.
            counters: function that returns the camera's counters, called for each scrape.
            sources: names of all sources of the camera, which are used to create unique labels.
            regions: whether to add the label ``region``, which is empty for sources without regions.

        Raises:
            EdgerecError: the address or the port cannot be used.
            MissingExtraError: prometheus-client is not installed.
        """
        metrics = require("prometheus_client")
        registry = metrics.CollectorRegistry(auto_describe=False)
        self._labels = {*manifest.labels, UNKNOWN}
        self._changes, self._sources, self._regions = DecisionChanges(), dict.fromkeys(sources), regions
        names = ["source", "region"] if regions else ["source"]
        self._frames = metrics.Counter("edgerec_frames", "Number of classified frames.", names, registry=registry)
        self._age = metrics.Histogram(
            "edgerec_result_age_seconds",
            "Time from the capture of a frame to its prediction.",
            names,
            buckets=AGE_S,
            registry=registry,
        )
        self._score = metrics.Gauge("edgerec_score", "Score of the last decision.", names, registry=registry)
        self._decisions = metrics.Counter(
            "edgerec_decisions", "Number of new decisions.", [*names, "label"], registry=registry
        )
        self._state = metrics.Gauge(
            "edgerec_source_state",
            "1 for the current state of a source, 0 for the others.",
            ["source", "state"],
            registry=registry,
        )
        metrics.Info("edgerec_bundle", "The bundle that is running.", registry=registry).info(bundle_info(manifest))
        metrics.ProcessCollector(registry=registry)
        if counters is not None:
            registry.register(_CounterCollector(counters))
        self._server = _Server(listen(host, port, "the metrics server"), metrics.MetricsHandler.factory(registry))
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="edgerec-prometheus", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, result: Result) -> None:
        """Count a result."""
        frame = result.frame
        labels = [self._name(frame.source or frame.origin)]
        if self._regions:
            labels.append(frame.region.name if frame.region else "")
        self._frames.labels(*labels).inc()
        self._age.labels(*labels).observe(result.age_ms / 1000)
        if result.decision is not None:
            self._score.labels(*labels).set(result.decision.score)
            if self._changes.is_new(result):
                label = result.decision.label
                self._decisions.labels(*labels, label if label in self._labels else "other").inc()

    def state(self, change: StateChange) -> None:
        """Store a source's state."""
        for state in SourceState:
            self._state.labels(self._name(change.source), str(state)).set(state is change.state)

    def _name(self, source: str) -> str:
        self._sources[source] = None
        return source_name(source, self._sources)

    def close(self) -> None:
        """Stop the server, disconnect all clients and wait for the threads. May be called more than once."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.disconnect(0.0)
            self._server.server_close()


class _CounterCollector:
    """A Prometheus collector that returns the camera's counters as metrics."""

    def __init__(self, counters: Callable[[], RunReport]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Any]:
        core = require("prometheus_client.core")
        counters = self._counters()
        overtaken = core.CounterMetricFamily(
            "edgerec_frames_overtaken", "Frames dropped because a newer frame arrived."
        )
        overtaken.add_metric([], counters.overtaken)
        skipped = core.CounterMetricFamily("edgerec_frames_skipped", "Skipped frames.", labels=["reason"])
        for reason, count in counters.skipped.items():
            skipped.add_metric([reason], count)
        dropped = core.CounterMetricFamily("edgerec_results_dropped", "Lost results.", labels=["sink"])
        for sink, count in counters.dropped.items():
            dropped.add_metric([sink], count)
        invalid = core.CounterMetricFamily("edgerec_frames_invalid", "Frames with NaN or infinite scores.")
        invalid.add_metric([], counters.invalid)
        return iter((overtaken, skipped, dropped, invalid))


class _Server(ThreadingHTTPServer):
    """HTTP server that limits the number of clients and the duration of their connections."""

    daemon_threads = False  # server_close() waits for threads that are not daemons.

    def __init__(self, listener: socket.socket, metrics_handler: Any) -> None:
        class Handler(metrics_handler):  # type: ignore[misc]
            timeout = CLIENT_S

            def do_GET(self) -> None:
                if self.path.partition("?")[0] == "/metrics":
                    super().do_GET()
                else:
                    self.send_error(404, "only /metrics is available")

        self._clients: dict[socket.socket, float] = {}
        self._clients_lock = threading.Lock()
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept a client. If there are too many clients, disconnect the oldest, which is probably idle or slow."""
        with self._clients_lock:
            if len(self._clients) >= MAX_CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._clients[request] = time.monotonic()
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._clients_lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        super().service_actions()
        self.disconnect(CLIENT_S)

    def disconnect(self, older_s: float) -> None:
        """Close all connections older than ``older_s`` seconds."""
        with self._clients_lock:
            for request, since_s in self._clients.items():
                if time.monotonic() - since_s >= older_s:
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception at debug level because clients may disconnect or send invalid data at any time."""
        log.debug("a request for /metrics failed", exc_info=True)


def bundle_info(manifest: Manifest) -> dict[str, str]:
    """Return the labels of the metric ``edgerec_bundle_info``."""
    return {
        "name": manifest.name,
        "target": manifest.target,
        "variant": manifest.variant,
        "model_sha256": manifest.files.get(manifest.model, ""),
        "edgerec": __version__,
    }
