"""The sinks that ``edgerec camera`` is asked for."""

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

# Options that may stand without a value, and what they mean then.
OPTIONAL = {"--web": "127.0.0.1:8000", "--metrics": "127.0.0.1:9464"}
# A host name without a port looks like a bundle's name, unless it is localhost or an IPv4 address.
_ADDRESS = re.compile(r"[^\s/]*:[^\s/]*|\d{1,5}|localhost|\d{1,3}(\.\d{1,3}){3}")


class CameraCommand(GroupedCommand):
    """Takes ``--web`` and ``--metrics`` with and without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _completed(args))


def _completed(args: Sequence[str]) -> list[str]:
    made: list[str] = []
    for at, argument in enumerate(args):
        made.append(argument)
        if argument in OPTIONAL and not (at + 1 < len(args) and _ADDRESS.fullmatch(args[at + 1])):
            made.append(OPTIONAL[argument])
    return made


@dataclass(frozen=True)
class Wanted:
    """What was asked for, as typed; empty is not."""

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


def open_sinks(wanted: Wanted, camera: Camera, stack: ExitStack) -> list[Sink]:
    """The sinks; those that hold something are closed with the stack, too.

    Raises:
        EdgerecError: one of them does not open.
        typer.BadParameter: something that was typed is not understood.
    """
    from edgerec.camera.sinks.console import JsonLines, StateLines, TextLines
    from edgerec.camera.sinks.window import Window, has_screen
    from edgerec.utils.atomic import checked_output

    _check_partners(wanted)
    for path in filter(None, (wanted.csv, wanted.video, wanted.save_dir, wanted.queue_dir, wanted.web_save)):
        checked_output(path, camera.inputs)
    sinks: list[Sink] = [StateLines(sys.stderr)]
    if wanted.json:
        sinks.append(JsonLines(sys.stdout))
    elif wanted.headless:
        sinks.append(TextLines(sys.stdout, named=len(camera.sources) > 1))
    # A page takes the window's place where there is no screen.
    window = not (wanted.headless or wanted.json) and (not wanted.web or has_screen())
    try:
        send = _sent(wanted, camera)
        if window:
            sinks.append(stack.enter_context(Window()))
        for open_sink in (*_served(wanted, camera, stack), *_files(wanted, camera), *send, *_table(wanted)):
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


def _check_partners(wanted: Wanted) -> None:
    """Raise :class:`typer.BadParameter` for an option that does nothing without another."""
    alone = {
        "--csv-append": (wanted.csv_append, "--csv FILE", wanted.csv),
        "--save-dir": (wanted.save_dir, "--save low-confidence|changes|all", wanted.save),
        "--save-every": (wanted.save_every, "--save low-confidence|changes|all", wanted.save),
        "--save": (wanted.save, "--save-dir FOLDER", wanted.save_dir),
        "--mqtt-results": (wanted.mqtt_results, "--mqtt URL", wanted.mqtt),
        "--queue-dir": (wanted.queue_dir, "--mqtt URL", wanted.mqtt),
        "--web-save": (wanted.web_save, "--web", wanted.web),
    }
    for option, (asked, partner, there) in alone.items():
        if asked and not there:
            raise typer.BadParameter(f"{option} does nothing without {partner}")


# Each function below returns a function that opens a sink. No sink changes an existing file before the first event,
# because another sink may fail to open. The CSV file is opened last, because opening it creates the file.


def _files(wanted: Wanted, camera: Camera) -> list[Callable[[], Sink]]:
    sinks: list[Callable[[], Sink]] = []
    if (video := wanted.video) is not None:
        from edgerec.camera.sinks.video import VideoFile

        sinks.append(lambda: VideoFile(video, live=camera.live, overwrite=wanted.overwrite))
    if (folder := wanted.save_dir) is not None:
        from edgerec.camera.sinks.image_recorder import ImageRecorder, SaveSpec
        from edgerec.utils.sizes import parse_size

        spec: dict[str, Any] = {"rule": wanted.save, "max_bytes": parse_size(wanted.save_max)}
        spec |= {"below": wanted.save_below, "min_interval_s": wanted.save_every}
        save_spec = SaveSpec(**spec)
        sinks.append(lambda: ImageRecorder(folder, save_spec, camera.manifest.labels))
    return sinks


def _table(wanted: Wanted) -> list[Callable[[], Sink]]:
    if (path := wanted.csv) is None:
        return []
    from edgerec.camera.sinks.csv import CsvFile

    return [lambda: CsvFile(path, "append" if wanted.csv_append else "overwrite" if wanted.overwrite else "refuse")]


def _served(wanted: Wanted, camera: Camera, stack: ExitStack) -> list[Callable[[], Sink]]:
    sinks: list[Callable[[], Sink]] = []
    if wanted.metrics:
        from edgerec.camera.sinks.prometheus import Prometheus, parse_listen

        metrics_host, metrics_port = parse_listen(wanted.metrics)

        def metrics() -> Prometheus:
            sink = stack.enter_context(
                Prometheus(camera.manifest, metrics_host, metrics_port, lambda: camera.report, camera.sources)
            )
            shown = f"[{metrics_host}]" if ":" in metrics_host else metrics_host
            log.info("the metrics are at http://%s:%d/metrics", shown, sink.port)
            return sink

        sinks.append(metrics)
    if wanted.web:
        from edgerec.camera.sinks.web import WebSink, is_loopback, parse_address
        from edgerec.utils.secrets import read_secret, secret_variable
        from edgerec.utils.sizes import parse_size

        host, port = parse_address(wanted.web)
        token = read_secret(wanted.web_token) if wanted.web_token else secret_variable("EDGEREC_WEB_TOKEN") or None
        if token is None and not is_loopback(host) and _logs_to_journal():
            raise EdgerecError(
                f"the web page on {host} needs a token, and a generated one would be stored in the system's journal: "
                "set EDGEREC_WEB_TOKEN, or EDGEREC_WEB_TOKEN_FILE to a file with mode 0600"
            )
        most = parse_size(wanted.web_save_max)

        def page() -> WebSink:
            sink = stack.enter_context(WebSink(host, port, camera.manifest.labels, token, wanted.web_save, most))
            if token is None and sink.token is not None:
                typer.echo(f"with its token: {sink.url}", err=True)
            return sink

        sinks.append(page)
    return sinks


def _sent(wanted: Wanted, camera: Camera) -> list[Callable[[], Sink]]:
    make: list[Callable[[], Sink]] = []
    if wanted.webhook:
        from edgerec.camera.sinks.webhook import Hook, Webhook
        from edgerec.utils.secrets import secret_variable

        hook = Hook.parse(wanted.webhook)
        secret = secret_variable("EDGEREC_WEBHOOK_SECRET")
        make.append(lambda: Webhook(hook, secret=secret, live=camera.live))
    if wanted.mqtt:
        from edgerec.camera.sinks.mqtt import Mqtt
        from edgerec.camera.sinks.mqtt_client import Broker
        from edgerec.utils.atomic import cache_folder
        from edgerec.utils.names import file_name
        from edgerec.utils.optional import require

        require("paho.mqtt.client")
        broker = Broker.parse(wanted.mqtt)
        name = file_name(str(broker))
        make.append(
            lambda: Mqtt(
                broker,
                wanted.queue_dir or cache_folder() / "mqtt" / name,
                camera.manifest,
                results_per_s=wanted.mqtt_results,
                discovery_prefix=wanted.mqtt_discovery,
                sources=camera.sources,
            )
        )
    return make
