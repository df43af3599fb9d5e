"""Prometheus metrics of a classification server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgerec.camera.sinks.prometheus import bundle_info
from edgerec.contract.manifest import Manifest
from edgerec.errors import MissingExtraError
from edgerec.serving.pool import ClassifierPool
from edgerec.utils.optional import require

# Upper bounds of the histogram buckets for request durations, in seconds.
DURATION_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMetrics:
    """Counts requests and images, if prometheus-client is installed.

    Attributes:
        available: whether prometheus-client is installed.
    """

    def __init__(self, manifest: Manifest, pool: ClassifierPool) -> None:
        """Create the metrics of a server."""
        self._request: dict[int, Any] = {}
        try:
            prometheus = require("prometheus_client")
        except MissingExtraError:
            self.available = False
            return
        self.available = True
        self._generate, self.content_type = prometheus.generate_latest, prometheus.CONTENT_TYPE_LATEST
        self._registry = prometheus.CollectorRegistry(auto_describe=False)
        self._requests = prometheus.Counter(
            "edgerec_requests", "Number of requests to /classify.", ["status"], registry=self._registry
        )
        self._duration = prometheus.Histogram(
            "edgerec_request_seconds",
            "Time from the headers of a request to /classify until its response.",
            buckets=DURATION_S,
            registry=self._registry,
        )
        prometheus.Info("edgerec_bundle", "The bundle that classifies the images.", registry=self._registry).info(
            bundle_info(manifest)
        )
        prometheus.ProcessCollector(registry=self._registry)
        self._registry.register(_PoolCollector(pool))

    def count(self, status: int, duration_s: float) -> None:
        """Record the status and duration of a request to ``/classify``."""
        if self.available:
            counter = self._request.get(status)
            if counter is None:
                counter = self._request[status] = self._requests.labels(str(status))
            counter.inc()
            self._duration.observe(duration_s)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format. Requires that :attr:`available` is True."""
        return bytes(self._generate(self._registry))


class _PoolCollector:
    """Prometheus collector for the counters of a :class:`ClassifierPool`."""

    def __init__(self, pool: ClassifierPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Any]:
        core = require("prometheus_client.core")
        pool = self._pool
        yield core.CounterMetricFamily("edgerec_images", "Number of classified images.", pool.classified)
        yield core.CounterMetricFamily("edgerec_images_invalid", "Images with NaN or infinite scores.", pool.invalid)
        yield core.GaugeMetricFamily(
            "edgerec_images_queued", "Images that are waiting or being classified.", pool.queued
        )
