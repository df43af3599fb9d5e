"""``edgerec camera``"""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.output import chatter, warn_about_secrets
from edgerec.cli.sinks import CameraCommand, Wanted, open_sinks
from edgerec.utils.optional import require

if TYPE_CHECKING:
    from edgerec.camera.frame_filters import View
    from edgerec.camera.source_state import Timeouts

log = logging.getLogger(__name__)

COMMAND_CLASS = CameraCommand


def camera(
    bundle: Path = typer.Argument(..., help="A bundle's folder or .zip."),
    source: list[str] = typer.Option(
        ["0"],
        "--source",
        "-s",
        help="auto (a camera module, otherwise the first USB camera), 0, /dev/video0, picamera2:0, "
        "rtsp://…, http://… (MJPEG or single images), a video file, a folder, or "
        "synthetic:640x480@30. env:NAME or @FILE reads an address with a password from an environment variable or from "
        "a file with mode 0600. May be repeated; the sources take turns.",
    ),
    headless: bool = typer.Option(False, "--headless", help="Print one line per frame instead of opening a window."),
    json: bool = typer.Option(
        False,
        "--json",
        help="Print one JSON object per frame and per change of a source's state instead of opening a window.",
    ),
    csv: Path | None = typer.Option(None, help="Write one row per frame to this CSV file."),
    csv_append: bool = typer.Option(False, "--csv-append", help="Append to an existing CSV file."),
    video: Path | None = typer.Option(None, help="Write the frames with their predictions to this .mp4 or .avi file."),
    save: str = typer.Option("", help="Save images: low-confidence, changes or all."),
    save_dir: Path | None = typer.Option(
        None, help="Folder for saved images, one subfolder per label, as edgerec train reads it."
    ),
    save_max: str = typer.Option("500MB", help="Maximum total size of saved images; the oldest are deleted first."),
    save_below: float = typer.Option(0.6, min=0, max=1, help="Scores below this count as low confidence."),
    save_every: float = typer.Option(0.0, min=0, help="Minimum time between two saved images of a source, in seconds."),
    mqtt: str = typer.Option(
        "",
        metavar="URL",
        help="Publish to mqtt[s]://USER@HOST:PORT/PREFIX, env:NAME or @FILE; the password from EDGEREC_MQTT_PASSWORD.",
    ),
    mqtt_results: float = typer.Option(0.0, min=0, help="Also publish this many results per second for each source."),
    mqtt_discovery: str = typer.Option(
        "homeassistant", help="Topic prefix for Home Assistant's discovery; empty turns it off."
    ),
    queue_dir: Path | None = typer.Option(None, help="Folder that stores messages while the broker is unreachable."),
    webhook: str = typer.Option(
        "",
        metavar="URL",
        help="POST new decisions as JSON to URL, env:NAME or @FILE; EDGEREC_WEBHOOK_SECRET signs them.",
    ),
    metrics: str = typer.Option("", metavar="[HOST:PORT]", help="Prometheus metrics. [default: 127.0.0.1:9464]"),
    web: str = typer.Option(
        "", metavar="[HOST:PORT]", help="Serve a web page with the live image. [default: 127.0.0.1:8000]"
    ),
    web_token: str | None = typer.Option(
        None,
        envvar="EDGEREC_WEB_TOKEN",
        help="Token of the web page, at least 8 characters. [default: generated and printed]",
    ),
    web_save: Path | None = typer.Option(
        None, help="Folder for images that are labeled on the web page, one subfolder per label."
    ),
    web_save_max: str = typer.Option(
        "2GB", help="Maximum total size of the folder --web-save; further images are refused."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the CSV file and the video."),
    max_frames: int | None = typer.Option(None, min=1, help="Stop after this many predictions."),
    threshold: float | None = typer.Option(
        None, min=0, max=1, help="Score below which the label is unknown. [default: the bundle's]"
    ),
    threads: int = typer.Option(
        0,
        min=0,
        max=256,
        help="Number of threads. 0 uses the number in the bundle, or measures the best number. For files, 0 means one "
        "per CPU, at most 4.",
    ),
    delegate: str | None = typer.Option(
        None,
        help="Delegate: a shared library such as libedgetpu.so.1, gpu, or none for the CPU. [default: the bundle's]",
    ),
    delegate_option: list[str] = typer.Option(
        [], help="KEY=VALUE for the delegate, e.g. device=usb:1 for the second USB device. May be repeated."
    ),
    fallback: bool = typer.Option(False, "--fallback", help="Use the CPU if the delegate cannot be loaded."),
    size: str | None = typer.Option(None, help="Image size to request from a camera, e.g. 1280x720."),
    rate: float = typer.Option(
        0.0,
        min=0,
        show_default=False,
        help="Frames per second to request. [default: the camera's own rate; 2 for an HTTP address of single images]",
    ),
    pixel_format: str = typer.Option("", "--format", help="Pixel format to request from a camera, e.g. MJPG."),
    roi: str | None = typer.Option(
        None,
        help="Region to classify: x,y,width,height in pixels, or as fractions of the frame if no number is above 1.",
    ),
    rotate: int = typer.Option(0, help="Rotate frames clockwise by 90, 180 or 270 degrees."),
    mirror: bool = typer.Option(False, "--mirror", help="Mirror frames horizontally."),
    every: int = typer.Option(1, min=1, help="Classify only every n-th frame."),
    max_fps: float = typer.Option(
        0.0, min=0, help="Maximum number of frames per second to classify, in media time for files; 0 means no limit."
    ),
    max_age: float = typer.Option(
        0.0, min=0, help="Drop live frames that are older than this many seconds; 0 drops none."
    ),
    motion: float = typer.Option(
        0.0, min=0, max=1, help="Skip a frame if at most this fraction of its pixels changed; 0 skips none."
    ),
    decision: list[str] = typer.Option(
        [],
        help="Override a decision setting of the bundle, e.g. smoothing=vote, memory=9, votes=5, hysteresis=0.1, "
        "least_s=1, temperature=1.5. May be repeated.",
    ),
    loop: bool = typer.Option(False, "--loop", help="Start video files and folders again when they end."),
    give_up_after: float | None = typer.Option(
        None,
        min=0,
        help="Stop with an error when a live source has delivered no frame for this many seconds. [default: never]",
    ),
) -> None:
    """Classify frames of cameras, videos or folders until q or Ctrl-C is pressed. Lost streams are reconnected."""
    from edgerec.camera.interrupts import raise_on_signals
    from edgerec.camera.pipeline import Camera
    from edgerec.camera.systemd import ServiceNotifier
    from edgerec.utils.allocator import limit_malloc_arenas

    chatter()
    raise_on_signals()
    limit_malloc_arenas(2)
    live = Camera.open(
        bundle,
        source,
        threads=threads,
        delegate="" if delegate == "none" else delegate,
        delegate_options={key: str(value) for key, value in key_values(delegate_option, "device=usb:1").items()},
        fallback=fallback,
        threshold=threshold,
        decision=key_values(decision, "smoothing=vote"),
        requested=_format(size, rate, pixel_format),
        view=_view(roi, rotate=rotate, mirror=mirror, every=every, max_fps=max_fps, max_age_s=max_age, motion=motion),
        timeouts=_timeouts(give_up_after),
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
        web_save_max=web_save_max,
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
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        sinks = open_sinks(wanted, live, stack)
        warn_about_secrets([*source, mqtt, webhook], [web_token or ""])
        stack.enter_context(live)
        # Without keep_open, the web page would disappear after the last frame of a video.
        keep_open = bool(web) and not live.live and max_frames is None
        if keep_open and not loop:
            log.info("the web page stays open after the last frame until Ctrl-C is pressed; --max-frames stops earlier")
        live.run(sinks, max_frames, service=ServiceNotifier.from_environment(), keep_open=keep_open)
    if live.report.incomplete:  # the reasons have already been logged
        raise typer.Exit(1)


def key_values(texts: list[str], example: str) -> dict[str, Any]:
    """Parse the values of a repeated ``KEY=VALUE`` option; raises a usage error that shows ``example``."""
    if not texts:
        return {}
    from edgerec.recipe import parse_assignment  # loads many modules

    if wrong := next((text for text in texts if not text.partition("=")[0].strip() or "=" not in text), None):
        raise typer.BadParameter(f"{wrong!r} is no KEY=VALUE, as {example}")
    return dict(map(parse_assignment, texts))


def _format(size: str | None, rate: float, pixel_format: str) -> Any:
    from edgerec.camera.sources import CaptureFormat

    numbers = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size or "0x0", re.IGNORECASE)
    if not numbers:
        raise typer.BadParameter(f"--size is {size!r}, expected as 1280x720")
    if pixel_format and not (len(pixel_format) == 4 and pixel_format.isascii() and pixel_format.isprintable()):
        raise typer.BadParameter(f"--format is {pixel_format!r}, expected four letters, as MJPG or YUYV")
    return CaptureFormat(int(numbers[1]), int(numbers[2]), rate, pixel_format)


def _timeouts(give_up_s: float | None) -> Timeouts:
    from edgerec.camera.source_state import Timeouts

    try:
        return Timeouts(give_up_s=give_up_s)
    except ValueError as error:
        raise typer.BadParameter(f"--give-up-after is {give_up_s}: {error}") from None


def _view(roi: str | None, **options: Any) -> View:
    from edgerec.camera.frame_filters import View, parse_roi

    try:
        return View(parse_roi(roi) if roi else None, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
