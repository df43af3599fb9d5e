"""Implement the ``edgerec camera`` command."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from edgerec.cli.help import GroupedCommand
from edgerec.cli.options import (
    MODEL_PANEL,
    REDUCED_DECODING_HELP,
    AllowedSignersOption,
    DelegateOption,
    DelegateOptionsOption,
    FallbackOption,
    RevokedKeysOption,
    ThresholdOption,
)
from edgerec.cli.output import show_log

# Default values of options that can be given without a value.
_OPTIONAL_VALUES = {"--web": "127.0.0.1:8000", "--metrics": "127.0.0.1:9464"}
# Matches HOST:PORT, PORT, localhost or an IPv4 address, because any other word could be the name of a bundle.
_ADDRESS = re.compile(r"[^\s/]*:[^\s/]*|\d{1,5}|localhost|\d{1,3}(\.\d{1,3}){3}")


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a default address added to ``--web`` and ``--metrics`` if they have none.

    Click's optional values cannot be used, because ``--web BUNDLE`` would take BUNDLE as the address.
    """
    completed: list[str] = []
    for index, argument in enumerate(arguments):
        completed.append(argument)
        has_address = index + 1 < len(arguments) and _ADDRESS.fullmatch(arguments[index + 1] or ":")
        if argument in _OPTIONAL_VALUES and not has_address:
            completed.append(_OPTIONAL_VALUES[argument])
    return completed


class CameraCommand(GroupedCommand):
    """A command whose ``--web`` and ``--metrics`` options work with or without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, complete_arguments(args))


COMMAND_CLASS = CameraCommand

_CAMERA, _FRAMES = "Camera settings", "Frames to classify"
_FILES, _NETWORK, _WEB = "Files", "Network", "Web page"


def camera(
    context: typer.Context,
    bundle: Path | None = typer.Argument(
        None,
        metavar="BUNDLE",
        show_default=False,
        help="Bundle folder or .zip file. [default: the bundle in the file of --config]",
    ),
    source: list[str] = typer.Option(
        ["0"],
        "--source",
        "-s",
        metavar="SOURCE",
        help="auto (the camera module if there is one, otherwise the first USB camera), 0, /dev/video0, picamera2:0, "
        "rtsp://…, http://… (MJPEG or single images), a video file, a folder, or synthetic:640x480@30. For an address "
        "with a password, use env:NAME (environment variable) or @FILE (mode 0600). May be repeated. Frames are taken "
        "from the sources in turn.",
    ),
    headless: bool = typer.Option(False, "--headless", help="Print one line per frame instead of opening a window."),
    json: bool = typer.Option(
        False,
        "--json",
        help="Instead of opening a window, print one JSON object per frame and per change in a source's state.",
    ),
    web: str = typer.Option(
        "",
        metavar="[HOST:PORT]",
        help="Serve a web page with the live image. HOST:PORT defaults to 127.0.0.1:8000.",
    ),
    csv: Path | None = typer.Option(None, metavar="FILE", help="Output CSV file with one row per frame."),
    max_frames: int | None = typer.Option(
        None, min=1, metavar="N", help="Stop after this many predictions. [default: never]"
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace existing output files."),
    config: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="TOML file with settings, regions and actions. Options override values.",
    ),
    write_config: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Write the configuration that results from --config and the other options to a TOML file, and exit.",
        rich_help_panel=_FILES,
    ),
    size: str | None = typer.Option(
        None,
        metavar="WxH",
        help="Image size to request from the camera, in pixels, such as 1280x720. [default: the camera's default]",
        rich_help_panel=_CAMERA,
    ),
    rate: float = typer.Option(
        0.0,
        min=0,
        metavar="FPS",
        show_default=False,
        help="Frame rate to request from the camera. [default: the camera's default, or 2 for a URL that returns "
        "single images]",
        rich_help_panel=_CAMERA,
    ),
    pixel_format: str = typer.Option(
        "",
        "--format",
        metavar="FOURCC",
        help="Pixel format to request from the camera, such as MJPG. [default: the camera's default]",
        rich_help_panel=_CAMERA,
    ),
    loop: bool = typer.Option(False, "--loop", help="Loop video files and folders.", rich_help_panel=_CAMERA),
    reduced_decoding: bool = typer.Option(
        False,
        "--reduced-decoding",
        help=f"{REDUCED_DECODING_HELP} Applies to HTTP sources and folders. Windows, web pages, saved images and "
        "videos show the reduced frames.",
        rich_help_panel=_CAMERA,
    ),
    give_up_after: float | None = typer.Option(
        None,
        min=0,
        metavar="SECONDS",
        help="Exit with an error if a live source delivers no frame for this many seconds. [default: never]",
        rich_help_panel=_CAMERA,
    ),
    roi: str | None = typer.Option(
        None,
        metavar="X,Y,W,H",
        help="Region to classify: x, y, width and height in pixels or, if all four numbers are at most 1, as fractions "
        "of the frame. [default: the whole frame]",
        rich_help_panel=_FRAMES,
    ),
    rotate: int = typer.Option(
        0, metavar="DEGREES", help="Rotate frames clockwise by 90, 180 or 270 degrees.", rich_help_panel=_FRAMES
    ),
    mirror: bool = typer.Option(False, "--mirror", help="Mirror frames horizontally.", rich_help_panel=_FRAMES),
    every: int = typer.Option(1, min=1, metavar="N", help="Classify only every n-th frame.", rich_help_panel=_FRAMES),
    max_fps: float = typer.Option(
        0.0,
        min=0,
        metavar="FPS",
        help="Maximum number of frames to classify per second, or per second of a video file. 0 means no limit.",
        rich_help_panel=_FRAMES,
    ),
    max_age: float = typer.Option(
        0.0,
        min=0,
        metavar="SECONDS",
        help="Drop live frames older than this many seconds. 0 disables this check.",
        rich_help_panel=_FRAMES,
    ),
    motion: float = typer.Option(
        0.0,
        min=0,
        max=1,
        metavar="FRACTION",
        help="Skip frames in which at most this fraction of the pixels has changed since the last classified frame. 0 "
        "disables this check.",
        rich_help_panel=_FRAMES,
    ),
    threshold: float | None = ThresholdOption,
    decision: list[str] = typer.Option(
        [],
        metavar="KEY=VALUE",
        help="Override one of the bundle's decision settings, given as KEY=VALUE (e.g. smoothing=vote, memory=9, "
        "votes=5, hysteresis=0.1, least_s=1 or temperature=1.5). May be repeated.",
        rich_help_panel=MODEL_PANEL,
    ),
    threads: int = typer.Option(
        0,
        min=0,
        max=256,
        metavar="N",
        help="Number of interpreter threads. 0 uses the number specified in the bundle. If the bundle specifies no "
        "number, 0 selects the fastest number in a short benchmark or, for files, one thread per CPU, up to 4.",
        rich_help_panel=MODEL_PANEL,
    ),
    delegate: str | None = DelegateOption,
    delegate_option: list[str] = DelegateOptionsOption,
    fallback: bool = FallbackOption,
    allowed_signers: Path | None = AllowedSignersOption,
    revoked_keys: Path | None = RevokedKeysOption,
    csv_append: bool = typer.Option(
        False, "--csv-append", help="Append to the CSV file if it exists.", rich_help_panel=_FILES
    ),
    video: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Output .mp4 or .avi file for the frames, annotated with their predictions.",
        rich_help_panel=_FILES,
    ),
    save: str = typer.Option(
        "",
        metavar="WHICH",
        help="Images to save in --save-dir: low-confidence, changes (when the decision changes) or all. [default: "
        "none]",
        rich_help_panel=_FILES,
    ),
    save_dir: Path | None = typer.Option(
        None,
        metavar="FOLDER",
        help="Output folder for saved images, with one subfolder per label so that it can be used for training.",
        rich_help_panel=_FILES,
    ),
    save_max: str = typer.Option(
        "500MB",
        metavar="SIZE",
        help="Maximum total size of the saved images. The oldest images are deleted first.",
        rich_help_panel=_FILES,
    ),
    save_below: float = typer.Option(
        0.6,
        min=0,
        max=1,
        metavar="SCORE",
        help="Scores below this value are treated as low confidence.",
        rich_help_panel=_FILES,
    ),
    save_every: float = typer.Option(
        0.0,
        min=0,
        metavar="SECONDS",
        help="Minimum time between two images saved from the same source, in seconds.",
        rich_help_panel=_FILES,
    ),
    status_file: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="JSON file to which the state of the camera is written about once per second, e.g. for edgerec devices.",
        rich_help_panel=_FILES,
    ),
    mqtt: str = typer.Option(
        "",
        metavar="URL",
        help="MQTT broker to which decisions are published: mqtt[s]://USER@HOST:PORT/PREFIX, env:NAME or @FILE. The "
        "password is read from the environment variable EDGEREC_MQTT_PASSWORD.",
        rich_help_panel=_NETWORK,
    ),
    mqtt_results: float = typer.Option(
        0.0,
        min=0,
        metavar="PER_SECOND",
        help="Also publish results for individual frames, at most this many per second and source.",
        rich_help_panel=_NETWORK,
    ),
    mqtt_discovery: str = typer.Option(
        "homeassistant",
        metavar="PREFIX",
        help="Topic prefix for Home Assistant's MQTT discovery. An empty string disables discovery.",
        rich_help_panel=_NETWORK,
    ),
    queue_dir: Path | None = typer.Option(
        None,
        metavar="FOLDER",
        help="Folder for storing MQTT messages while the broker is unreachable. [default: a folder in the cache]",
        rich_help_panel=_NETWORK,
    ),
    webhook: str = typer.Option(
        "",
        metavar="URL",
        help="URL (or env:NAME or @FILE) to which each new decision is sent as JSON in a POST request. Requests are "
        "signed with the secret in the environment variable EDGEREC_WEBHOOK_SECRET.",
        rich_help_panel=_NETWORK,
    ),
    metrics: str = typer.Option(
        "",
        metavar="[HOST:PORT]",
        help="Serve Prometheus metrics. HOST:PORT defaults to 127.0.0.1:9464.",
        rich_help_panel=_NETWORK,
    ),
    web_token: str | None = typer.Option(
        None,
        metavar="TOKEN",
        help="Access token for the web page (or env:NAME or @FILE), with at least 8 characters. [default: the value of "
        "the environment variable EDGEREC_WEB_TOKEN, or a generated token, which is printed]",
        rich_help_panel=_WEB,
    ),
    web_save: Path | None = typer.Option(
        None,
        metavar="FOLDER",
        help="Output folder for images labeled on the web page, with one subfolder per label. [default: none]",
        rich_help_panel=_WEB,
    ),
    web_save_max: str = typer.Option(
        "2GB",
        metavar="SIZE",
        help="Maximum total size of the images in --web-save. Once it is reached, no more images are saved.",
        rich_help_panel=_WEB,
    ),
) -> None:
    """Classify frames from cameras, videos or folders.

    The command runs until q or Ctrl-C is pressed, and reconnects to live sources.
    """
    # Garbage collection during the imports would take up to 20 ms and free almost nothing.
    gc.disable()
    from edgerec.camera.config_reader import keys_of_file
    from edgerec.camera.run import run_camera
    from edgerec.cli.camera_options import camera_config, write_camera_config

    # Without gc.freeze(), garbage collections would pause the camera for several milliseconds.
    gc.freeze()
    gc.enable()
    settings = camera_config(context, config)
    if write_config:
        write_camera_config(settings, write_config, overwrite)
        return
    show_log()
    with keys_of_file(type(settings), config):
        report = run_camera(settings)
    if report.exit_code:  # run_camera() has already logged the errors.
        raise typer.Exit(report.exit_code)
