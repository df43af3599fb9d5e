"""Open the sinks that the options of ``edgerec camera`` select."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.help import GroupedCommand
from edgerec.errors import EdgerecError

if TYPE_CHECKING:
    from edgerec.camera.pipeline import Camera
    from edgerec.camera.sinks import Sink

log = logging.getLogger(__name__)

# Options whose value may be omitted, and their default values.
OPTIONAL_VALUES = {"--web": "127.0.0.1:8000", "--metrics": "127.0.0.1:9464"}
# A host name without a port looks like a bundle's name, unless it is localhost or an IPv4 address.
_ADDRESS = re.compile(r"[^\s/]*:[^\s/]*|\d{1,5}|localhost|\d{1,3}(\.\d{1,3}){3}")


class CameraCommand(GroupedCommand):
    """The command ``edgerec camera``, whose options ``--web`` and ``--metrics`` accept an optional address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, complete_arguments(args))


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments with the default address after each ``--web`` and ``--metrics`` that has none."""
    completed: list[str] = []
    for index, argument in enumerate(arguments):
        completed.append(argument)
        has_address = index + 1 < len(arguments) and _ADDRESS.fullmatch(arguments[index + 1])
        if argument in OPTIONAL_VALUES and not has_address:
            completed.append(OPTIONAL_VALUES[argument])
    return completed


@dataclass(frozen=True)
class SinkOptions:
    """Values of the options of ``edgerec camera`` that select and configure sinks. Empty values select no sink."""

    headless: bool
    json: bool
    csv: Path | None
    csv_append: bool
    video: Path | None
    save: str
    save_dir: Path | None
    save_max: str
    save_below: float
    save_every: float
    mqtt: str
    mqtt_results: float
    mqtt_discovery: str
    queue_dir: Path | None
    webhook: str
    metrics: str
    web: str
    web_token: str | None
    web_save: Path | None
    web_save_max: str
    overwrite: bool


def open_sinks(options: SinkOptions, camera: Camera, stack: ExitStack) -> list[Sink]:
    """Open the selected sinks and return them. Sinks with windows or servers are also closed by ``stack``.

    Raises:
        EdgerecError: a sink cannot be opened.
        typer.BadParameter: the value of an option is invalid.
    """
    from edgerec.camera.sinks.console import JsonLines, StateLines, TextLines
    from edgerec.utils.atomic import checked_output

    _check_combinations(options)
    for path in filter(None, (options.csv, options.video, options.save_dir, options.queue_dir, options.web_save)):
        checked_output(path, camera.inputs)
    sinks: list[Sink] = [StateLines(sys.stderr)]
    if options.json:
        sinks.append(JsonLines(sys.stdout))
    elif options.headless:
        sinks.append(TextLines(sys.stdout, named=len(camera.sources) > 1))
    try:
        network_sinks = _network_sinks(options, camera)
        if not (options.headless or options.json):
            from edgerec.camera.sinks.window import Window, has_screen

            if has_screen() or not options.web:  # the web page replaces the window on a machine without a display
                sinks.append(stack.enter_context(Window()))
        for open_sink in (
            *_servers(options, camera, stack),
            *_file_sinks(options, camera),
            *network_sinks,
            *_csv_sink(options),
        ):
            sinks.append(open_sink())
    except BaseException as error:
        for sink in sinks:
            with suppress(Exception):
                sink.close()
        if type(error) is not ValueError:
            raise
        raise typer.BadParameter(str(error)) from None
    return sinks


def _logs_to_journal() -> bool:
    """Return whether stderr is connected to the journal of systemd."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def _check_combinations(options: SinkOptions) -> None:
    """Raise :class:`typer.BadParameter` if an option is used without the option that it depends on."""
    dependencies = {
        "--csv-append": (options.csv_append, "--csv FILE", options.csv),
        "--save-dir": (options.save_dir, "--save low-confidence|changes|all", options.save),
        "--save-every": (options.save_every, "--save low-confidence|changes|all", options.save),
        "--save": (options.save, "--save-dir FOLDER", options.save_dir),
        "--mqtt-results": (options.mqtt_results, "--mqtt URL", options.mqtt),
        "--queue-dir": (options.queue_dir, "--mqtt URL", options.mqtt),
        "--web-save": (options.web_save, "--web", options.web),
    }
    for option, (value, required, required_value) in dependencies.items():
        if value and not required_value:
            raise typer.BadParameter(f"{option} has no effect without {required}")


# Each function below returns a function that opens a sink. No sink changes an existing file before the first event,
# because another sink may fail to open. The CSV file is opened last, because opening it creates the file.


def _file_sinks(options: SinkOptions, camera: Camera) -> list[Callable[[], Sink]]:
    sinks: list[Callable[[], Sink]] = []
    if (video := options.video) is not None:
        from edgerec.camera.sinks.video import VideoFile

        sinks.append(lambda: VideoFile(video, live=camera.live, overwrite=options.overwrite))
    if (folder := options.save_dir) is not None:
        from edgerec.camera.sinks.image_recorder import ImageRecorder, SaveSpec
        from edgerec.utils.sizes import parse_size

        spec: dict[str, Any] = {"rule": options.save, "max_bytes": parse_size(options.save_max)}
        spec |= {"below": options.save_below, "min_interval_s": options.save_every}
        save_spec = SaveSpec(**spec)
        sinks.append(lambda: ImageRecorder(folder, save_spec, camera.manifest.labels))
    return sinks


def _csv_sink(options: SinkOptions) -> list[Callable[[], Sink]]:
    if (path := options.csv) is None:
        return []
    from edgerec.camera.sinks.csv import CsvFile

    return [lambda: CsvFile(path, "append" if options.csv_append else "overwrite" if options.overwrite else "refuse")]


def _servers(options: SinkOptions, camera: Camera, stack: ExitStack) -> list[Callable[[], Sink]]:
    sinks: list[Callable[[], Sink]] = []
    if options.metrics:
        from edgerec.camera.sinks.prometheus import Prometheus, parse_listen

        metrics_host, metrics_port = parse_listen(options.metrics)

        def metrics() -> Prometheus:
            sink = stack.enter_context(
                Prometheus(camera.manifest, metrics_host, metrics_port, lambda: camera.report, camera.sources)
            )
            host_in_url = f"[{metrics_host}]" if ":" in metrics_host else metrics_host
            log.info("the metrics are at http://%s:%d/metrics", host_in_url, sink.port)
            return sink

        sinks.append(metrics)
    if options.web:
        from edgerec.camera.sinks.web import WebSink, is_loopback, parse_address
        from edgerec.utils.secrets import read_secret, secret_variable
        from edgerec.utils.sizes import parse_size

        host, port = parse_address(options.web)
        token = read_secret(options.web_token) if options.web_token else secret_variable("EDGEREC_WEB_TOKEN") or None
        if token is None and not is_loopback(host) and _logs_to_journal():
            raise EdgerecError(
                f"the web page on {host} needs a token, and a generated one would be stored in the system's journal: "
                "set EDGEREC_WEB_TOKEN, or EDGEREC_WEB_TOKEN_FILE to a file with mode 0600"
            )
        max_bytes = parse_size(options.web_save_max)

        def page() -> WebSink:
            sink = stack.enter_context(WebSink(host, port, camera.manifest.labels, token, options.web_save, max_bytes))
            if token is None and sink.token is not None:
                typer.echo(f"web page with the generated token: {sink.url}", err=True)
            return sink

        sinks.append(page)
    return sinks


def _network_sinks(options: SinkOptions, camera: Camera) -> list[Callable[[], Sink]]:
    sinks: list[Callable[[], Sink]] = []
    if options.webhook:
        from edgerec.camera.sinks.webhook import Hook, Webhook
        from edgerec.utils.secrets import secret_variable

        hook = Hook.parse(options.webhook)
        secret = secret_variable("EDGEREC_WEBHOOK_SECRET")
        sinks.append(lambda: Webhook(hook, secret=secret, live=camera.live))
    if options.mqtt:
        from edgerec.camera.sinks.mqtt import Mqtt
        from edgerec.camera.sinks.mqtt_client import Broker
        from edgerec.utils.atomic import cache_folder
        from edgerec.utils.names import file_name
        from edgerec.utils.optional import require

        require("paho.mqtt.client")
        broker = Broker.parse(options.mqtt)
        name = file_name(str(broker))
        sinks.append(
            lambda: Mqtt(
                broker,
                options.queue_dir or cache_folder() / "mqtt" / name,
                camera.manifest,
                results_per_s=options.mqtt_results,
                discovery_prefix=options.mqtt_discovery,
                sources=camera.sources,
            )
        )
    return sinks
