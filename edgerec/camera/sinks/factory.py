"""Open the sinks selected in a :class:`~edgerec.camera.config.CameraConfig`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.camera.sinks import Sink
from edgerec.utils.atomic import cache_folder, checked_output
from edgerec.utils.optional import require
from edgerec.utils.secret_references import read_secret, referenced_variable, secret_variable

if TYPE_CHECKING:
    from edgerec.camera.config import CameraConfig, WebPageConfig
    from edgerec.camera.pipeline import Camera

log = logging.getLogger(__name__)


def open_sinks(config: CameraConfig, camera: Camera) -> list[Sink]:
    """Open all sinks selected in ``config``. If a sink fails to open, close the others.

    Raises:
        EdgerecError: a sink cannot be opened.
    """
    for path in config.output_paths:
        checked_output(path, camera.inputs)
    sinks: list[Sink] = []
    with close_on_error(sinks):
        for sink in _opened_sinks(config, camera):
            sinks.append(sink)
    return sinks


@contextmanager
def close_on_error(sinks: Sequence[Sink]) -> Iterator[None]:
    """Context manager that closes all sinks if an exception is raised."""
    try:
        yield
    except BaseException:
        for sink in sinks:
            with suppress(Exception):
                sink.close()
        raise


def _opened_sinks(config: CameraConfig, camera: Camera) -> Iterator[Sink]:
    """Open and yield each configured sink. A sink's module is only imported if the sink is used.

    No sink changes an existing file before the first event, because another sink may fail to open. The CSV file is
    opened last because this creates the file.
    """
    manifest = camera.manifest
    if config.output != "none":
        from edgerec.camera.sinks.console import JsonLines, StateLines, TextLines

        yield StateLines(sys.stderr)
        if config.output == "json":
            yield JsonLines(sys.stdout)
        elif config.output == "text":
            yield TextLines(sys.stdout, named=len(camera.sources) > 1 or bool(camera.regions))
    # Check the addresses before a window or server is opened.
    if config.webhook:
        from edgerec.camera.sinks.webhook import Webhook, WebhookAddress

        webhook_address = WebhookAddress.parse(config.webhook.url)
    if config.mqtt:
        from edgerec.camera.sinks.mqtt import Mqtt
        from edgerec.camera.sinks.mqtt_client import Broker
        from edgerec.utils.names import file_name

        require("paho.mqtt.client")
        broker = Broker.parse(config.mqtt.url)
    if config.output == "window":
        from edgerec.camera.sinks.window import Window, has_screen

        if has_screen() or not config.web:  # Without a display, the web page replaces the window.
            yield Window()
    if config.metrics:
        from edgerec.camera.sinks.prometheus import Prometheus
        from edgerec.http.server_address import server_url

        host, port = config.metrics.host_port
        metrics = Prometheus(manifest, host, port, lambda: camera.report, camera.sources, regions=bool(camera.regions))
        log.info("the metrics are at %smetrics", server_url(host, metrics.port))
        yield metrics
    if config.status_file:
        from edgerec.camera.sinks.status_file import StatusFile

        digest, regions = camera.bundle_digest, camera.regions
        yield StatusFile(config.status_file, digest, manifest.name, lambda: camera.report, regions)
    if config.web:
        yield _open_web_page(config.web, camera)
    if config.video:
        from edgerec.camera.sinks.video import VideoFile

        yield VideoFile(config.video.path, live=camera.live, overwrite=config.video.overwrite)
    if config.images:
        from edgerec.camera.sinks.image_recorder import ImageRecorder

        yield ImageRecorder(config.images, manifest.labels)
    if config.webhook:
        secret = config.webhook.secret
        secret = secret_variable("EDGEREC_WEBHOOK_SECRET") if secret is None else read_secret(secret)
        yield Webhook(webhook_address, secret=secret, every_result=config.webhook.every_result, live=camera.live)
    if config.mqtt:
        queue_dir = config.mqtt.queue_dir
        yield Mqtt(
            broker,
            Path(queue_dir) if queue_dir else cache_folder() / "mqtt" / file_name(str(broker)),
            manifest,
            results_per_s=config.mqtt.results_per_s,
            discovery_prefix=config.mqtt.discovery_prefix,
            sources=camera.sources,
            regions=camera.regions,
        )
    if config.actions:
        yield from _open_actions(config, camera)
    if config.csv:
        from edgerec.camera.sinks.csv import CsvFile

        yield CsvFile(config.csv.path, config.csv.existing, regions=bool(camera.regions))


def _open_actions(config: CameraConfig, camera: Camera) -> Iterator[Sink]:
    from edgerec.camera.actions import resolved_actions

    labels, regions = camera.manifest.labels, camera.regions
    actions = resolved_actions(config.actions, tuple(config.sources), camera.sources, regions, labels)
    if pins := [action for action in actions if action.config.gpio is not None]:
        from edgerec.camera.sinks.gpio import GpioActions

        yield GpioActions(pins)
    if commands := [action for action in actions if action.config.command is not None]:
        from edgerec.camera.sinks.actions import CommandActions

        secrets = [config.web.token if config.web else "", config.webhook.secret if config.webhook else ""]
        names = {referenced_variable(value) for value in (*config.addresses, *secrets) if value}
        yield CommandActions(commands, live=camera.live, secrets=names)


def _open_web_page(config: WebPageConfig, camera: Camera) -> Sink:
    from edgerec.camera.sinks.web import WebSink
    from edgerec.http.token import configured_token

    host, port = config.host_port
    token = configured_token(config.token, "EDGEREC_WEB_TOKEN", host, "the web page")
    labels, regions = camera.manifest.labels, camera.regions
    page = WebSink(host, port, labels, token, config.save_dir, config.save_max_bytes, regions=regions)
    if token is None and page.token is not None:
        print(f"web page with the generated token: {page.url}", file=sys.stderr, flush=True)
    return page
