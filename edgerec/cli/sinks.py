"""The sinks that ``edgerec camera`` is asked for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from edgerec.camera.pipeline import Camera
    from edgerec.camera.sinks import Sink

# Options that may stand without a value, and what they mean then.
OPTIONAL = {"--web": "127.0.0.1:8000", "--metrics": "127.0.0.1:9100"}
_ADDRESS = re.compile(r"[^\s/]*:?\d{1,5}")


class CameraCommand(TyperCommand):
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
    video: Path | None
    save: str
    save_dir: Path | None
    save_max: str
    mqtt: str
    webhook: str
    metrics: str
    web: str
    web_token: str | None
    web_save: Path | None
    overwrite: bool


def open_sinks(wanted: Wanted, camera: Camera, stack: ExitStack) -> list[Sink]:
    """The sinks; those that hold something are closed with the stack, too.

    Raises:
        EdgerecError: one of them does not open.
        typer.BadParameter: something that was typed is not understood.
    """
    from edgerec.camera.sinks.text import JsonLines, StateLines, TextLines

    sinks: list[Sink] = [StateLines(sys.stderr)]
    if wanted.json:
        sinks.append(JsonLines(sys.stdout))
    try:
        sinks += _files(wanted, camera)
        sinks += _network(wanted, camera, stack)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise typer.BadParameter(str(error)) from None
    # A page takes the window's place where there is no screen.
    if not wanted.headless and not (wanted.web and not _screen()):
        from edgerec.camera.sinks.window import Window

        sinks.append(stack.enter_context(Window()))
    elif not wanted.json and not wanted.web:
        sinks.append(TextLines(sys.stdout))
    return sinks


def _files(wanted: Wanted, camera: Camera) -> list[Sink]:
    sinks: list[Sink] = []
    if wanted.csv is not None:
        from edgerec.camera.sinks.table import Table

        sinks.append(Table(wanted.csv, "overwrite" if wanted.overwrite else "refuse"))
    if wanted.video is not None:
        from edgerec.camera.sinks.video import VideoFile

        sinks.append(VideoFile(wanted.video, live=camera.live, overwrite=wanted.overwrite))
    if bool(wanted.save) != bool(wanted.save_dir):
        raise ValueError("--save low-confidence|changes|all and --save-dir FOLDER belong together")
    if wanted.save_dir is not None:
        from edgerec.camera.sinks.saver import SavedPictures, SaveSpec, parse_size

        spec: dict[str, Any] = {"rule": wanted.save, "most_bytes": parse_size(wanted.save_max)}
        sinks.append(SavedPictures(wanted.save_dir, SaveSpec(**spec)))
    return sinks


def _network(wanted: Wanted, camera: Camera, stack: ExitStack) -> list[Sink]:
    sinks: list[Sink] = []
    if wanted.mqtt:
        from edgerec.camera.sinks.broker import Broker
        from edgerec.camera.sinks.mqtt import Mqtt
        from edgerec.contract.files import cache_folder

        broker = Broker.parse(wanted.mqtt, os.environ)
        name = re.sub(r"\W+", "-", f"{broker}").strip("-")[:80]
        sinks.append(Mqtt(broker, cache_folder() / "mqtt" / name, camera.manifest))
    if wanted.webhook:
        from edgerec.camera.sinks.webhook import Hook, Webhook

        sinks.append(Webhook(Hook.parse(wanted.webhook), secret=os.environ.get("EDGEREC_WEBHOOK_SECRET", "")))
    if wanted.metrics:
        from edgerec.camera.sinks.prometheus import Prometheus, parse_listen

        sinks.append(Prometheus(camera.manifest, *parse_listen(wanted.metrics), lambda: camera.report))
    if wanted.web:
        from edgerec.camera.sinks.web import WebSink, parse_address

        host, port = parse_address(wanted.web)
        labels = camera.manifest.labels
        sinks.append(stack.enter_context(WebSink(host, port, labels, wanted.web_token, wanted.web_save)))
    return sinks


def _screen() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
