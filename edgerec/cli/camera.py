"""``edgerec camera``"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import chatter

if TYPE_CHECKING:
    from edgerec.camera.sinks import Sink


def camera(
    bundle: Path = typer.Argument(..., help="A bundle's folder or .zip."),
    source: str = typer.Option(
        "0", "--source", "-s", help="A camera's number, a video file, an RTSP or HTTP address, or a folder."
    ),
    headless: bool = typer.Option(False, "--headless", help="No window: one line per frame."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object per frame."),
    max_frames: int | None = typer.Option(None, min=1, help="End after so many frames."),
    threshold: float | None = typer.Option(None, min=0, max=1, help="Below this score: unknown."),
    threads: int = typer.Option(0, min=0, help="Interpreter threads; 0 takes the bundle's number."),
    delegate: str | None = typer.Option(
        None, help="Shared library of a delegate, as libedgetpu.so.1; none: the processor."
    ),
) -> None:
    """Classify a camera, video or folder in real time; q or Ctrl-C ends."""
    from edgerec.camera.pipeline import Camera
    from edgerec.camera.sinks.text import JsonLines, TextLines

    chatter()
    delegate = "" if delegate == "none" else delegate
    live = Camera.open(bundle, source, threads=threads, delegate=delegate, threshold=threshold)
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        sinks: list[Sink] = [JsonLines(sys.stdout)] if json else []
        if not headless:
            from edgerec.camera.sinks.window import Window

            sinks.append(stack.enter_context(Window()))
        elif not json:
            sinks.append(TextLines(sys.stdout))
        stack.enter_context(live)
        live.run(sinks, max_frames)
