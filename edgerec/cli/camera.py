"""``edgerec camera``"""

from __future__ import annotations

import logging
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.output import chatter
from edgerec.cli.sinks import Wanted, open_sinks
from edgerec.optional import require

if TYPE_CHECKING:
    from edgerec.camera.view import View

log = logging.getLogger(__name__)


def camera(
    bundle: Path = typer.Argument(..., help="A bundle's folder or .zip."),
    source: list[str] = typer.Option(
        ["0"],
        "--source",
        "-s",
        help="0, /dev/video0, picamera2:0, rtsp://…, http://… (MJPEG or single images), a video file, a folder, or "
        "synthetic:640x480@30. Several may be given; they take turns.",
    ),
    headless: bool = typer.Option(False, "--headless", help="No window: one line per frame, with its own label."),
    json: bool = typer.Option(False, "--json", help="No window: one JSON object per frame and change of state."),
    csv: Path | None = typer.Option(None, help="Write a row per frame into this table."),
    csv_append: bool = typer.Option(False, "--csv-append", help="Go on in a table that is there, as a service does."),
    video: Path | None = typer.Option(None, help="Write the frames with their answers into this .mp4 or .avi."),
    save: str = typer.Option("", help="Save pictures: low-confidence, changes or all."),
    save_dir: Path | None = typer.Option(None, help="Folder for them: FOLDER/LABEL/….jpg, as edgerec train takes it."),
    save_max: str = typer.Option("500MB", help="Room for them; the oldest go first."),
    save_below: float = typer.Option(0.6, min=0, max=1, help="A score below this is a low confidence."),
    save_every: float = typer.Option(0.0, min=0, help="Seconds between two saved pictures of a source."),
    mqtt: str = typer.Option(
        "", metavar="URL", help="Publish to mqtt[s]://USER@HOST:PORT/PREFIX; the password from EDGEREC_MQTT_PASSWORD."
    ),
    mqtt_results: float = typer.Option(0.0, min=0, help="Results per second of each source to publish, too."),
    mqtt_discovery: str = typer.Option("homeassistant", help="Home Assistant's prefix; empty announces nothing."),
    queue_dir: Path | None = typer.Option(None, help="Where messages wait while the broker is away."),
    webhook: str = typer.Option(
        "", metavar="URL", help="POST each new decision as JSON; EDGEREC_WEBHOOK_SECRET signs it."
    ),
    metrics: str = typer.Option("", metavar="[HOST:PORT]", help="Prometheus metrics. [default: 127.0.0.1:9464]"),
    web: str = typer.Option(
        "", metavar="[HOST:PORT]", help="A web page with the live picture. [default: 127.0.0.1:8000]"
    ),
    web_token: str | None = typer.Option(
        None, envvar="EDGEREC_WEB_TOKEN", help="The page's token, 8 characters or more. [default: made and printed]"
    ),
    web_save: Path | None = typer.Option(
        None, help="Folder for the pictures that people label on the page: FOLDER/LABEL/….png."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the table and the video."),
    max_frames: int | None = typer.Option(None, min=1, help="End after so many answers."),
    threshold: float | None = typer.Option(None, min=0, max=1, help="Below this score: unknown."),
    threads: int = typer.Option(
        0, min=0, max=256, help="Threads; 0 takes the bundle's number, measures once; for files, all processors."
    ),
    delegate: str | None = typer.Option(
        None, help="Shared library of a delegate, as libedgetpu.so.1; gpu; none: the processor."
    ),
    delegate_option: list[str] = typer.Option(
        [], help="KEY=VALUE for the delegate, as device=usb:1 for the second stick. May be given several times."
    ),
    fallback: bool = typer.Option(False, "--fallback", help="Run on the processor where the delegate does not load."),
    size: str | None = typer.Option(None, help="What a camera is asked for, as 1280x720."),
    rate: float = typer.Option(
        0.0,
        min=0,
        show_default=False,
        help="Frames per second to request. [default: a camera's own rate; 2 for an address of single images]",
    ),
    pixel_format: str = typer.Option("", "--format", help="Pixel format that a camera is asked for, as MJPG."),
    roi: str | None = typer.Option(
        None, help="Part of the picture: x,y,width,height in pixels; with no number above 1, as parts of the whole."
    ),
    rotate: int = typer.Option(0, help="Turn the picture clockwise: 90, 180 or 270."),
    mirror: bool = typer.Option(False, "--mirror", help="Left becomes right."),
    every: int = typer.Option(1, min=1, help="Look at every n-th frame only."),
    max_fps: float = typer.Option(0.0, min=0, help="Look at no more frames per second; 0 takes all."),
    max_age: float = typer.Option(0.0, min=0, help="Leave out frames that waited longer, in seconds; 0 takes all."),
    motion: float = typer.Option(
        0.0, min=0, max=1, help="Leave out frames of which no more than this part changed; 0 takes all."
    ),
    decision: list[str] = typer.Option(
        [],
        help="Other than the bundle decides, as smoothing=vote, memory=9, votes=5, hysteresis=0.1, least_s=1, "
        "temperature=1.5. May be given several times.",
    ),
    loop: bool = typer.Option(False, "--loop", help="Start video files and folders again when they end."),
    give_up_after: float | None = typer.Option(
        None, min=0, help="End with an error when a live source gave nothing for so many seconds. [default: never]"
    ),
) -> None:
    """Classify cameras, videos or folders in real time; q or Ctrl-C ends. A stream that is lost is connected again."""
    from edgerec.camera.pipeline import Camera
    from edgerec.camera.service import Service
    from edgerec.camera.states import Patience

    chatter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager ends it as Ctrl-C does
    live = Camera.open(
        bundle,
        source,
        threads=threads,
        delegate="" if delegate == "none" else delegate,
        delegate_options={key: str(value) for key, value in _pairs(delegate_option, "device=usb:1").items()},
        fallback=fallback,
        threshold=threshold,
        decision=_pairs(decision, "smoothing=vote"),
        wanted=_format(size, rate, pixel_format),
        view=_view(roi, rotate=rotate, mirror=mirror, every=every, max_fps=max_fps, max_age_s=max_age, motion=motion),
        patience=Patience(give_up_s=give_up_after),
        loop=loop,
    )
    wanted = Wanted(
        headless=headless,
        json=json,
        csv=csv,
        video=video,
        save=save,
        save_dir=save_dir,
        save_max=save_max,
        mqtt=mqtt,
        webhook=webhook,
        metrics=metrics,
        web=web,
        web_token=web_token,
        web_save=web_save,
        csv_append=csv_append,
        save_below=save_below,
        save_every=save_every,
        mqtt_results=mqtt_results,
        mqtt_discovery=mqtt_discovery,
        queue_dir=queue_dir,
        overwrite=overwrite,
    )
    # OpenCV's own threads would take the processor from the interpreter's: 0 to 7 % fewer frames, as measured.
    require("cv2").setNumThreads(1)
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        sinks = open_sinks(wanted, live, stack)
        stack.enter_context(live)
        # The page of a video would vanish with its last frame.
        keep_open = bool(web) and not live.live and max_frames is None
        if keep_open and not loop:
            log.info("the page stays open after the last frame, until Ctrl-C; --max-frames ends earlier")
        live.run(sinks, max_frames, service=Service.from_environment(), keep_open=keep_open)


def _pairs(texts: list[str], example: str) -> dict[str, Any]:
    from edgerec.contract.recipe import parse_assignment

    if wrong := next((text for text in texts if not text.partition("=")[0].strip() or "=" not in text), None):
        raise typer.BadParameter(f"{wrong!r} is no KEY=VALUE, as {example}")
    return dict(map(parse_assignment, texts))


def _format(size: str | None, rate: float, pixel_format: str) -> Any:
    from edgerec.camera.sources import CaptureFormat

    width, _, height = (size or "0x0").lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise typer.BadParameter(f"--size is {size!r}, expected as 1280x720")
    if pixel_format and len(pixel_format) != 4:
        raise typer.BadParameter(f"--format is {pixel_format!r}, expected four letters, as MJPG or YUYV")
    return CaptureFormat(int(width), int(height), rate, pixel_format)


def _view(roi: str | None, **options: Any) -> View:
    from edgerec.camera.view import View, parse_roi

    try:
        return View(parse_roi(roi) if roi else None, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
