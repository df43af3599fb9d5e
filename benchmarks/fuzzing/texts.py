"""Damaged texts that users type: URLs, sizes, regions, and command-line options."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from edgerec.camera.frame_filters import FrameOptions, parse_roi
from edgerec.camera.sinks.mqtt_client import Broker
from edgerec.camera.sinks.webhook import WebhookAddress
from edgerec.camera.sources import find_source
from edgerec.contract.tensors import parse_normalize
from edgerec.errors import EdgerecError
from edgerec.recipe import parse_assignment
from edgerec.utils.byte_sizes import parse_size
from edgerec.utils.host_port import parse_host_port
from fuzzing.mutate import damaged_text
from fuzzing.tally import Attempt, Broken, run_command

_READERS: tuple[tuple[Callable[[str], Any], tuple[str, ...]], ...] = (
    (
        find_source,
        (
            "0", "/dev/video0", "picamera2:0", "rtsp://me:secret@127.0.0.1:554/stream?channel=1", "rtsps://[::1]/x",
            "http://127.0.0.1:8080/camera.mjpg", "https://me@camera.local/", "video.mp4", "synthetic:640x480@30",
        ),
    ),
    (lambda text: Broker.parse(text, {}), ("mqtt://me:secret@127.0.0.1:1883/home/hall", "mqtts://[::1]:8883/")),
    (WebhookAddress.parse, ("https://me:secret@127.0.0.1:8443/hook?key=1",)),
    (lambda text: parse_host_port(text, "127.0.0.1", 8000), ("127.0.0.1:8000", "[::1]:8000", "8000")),
    (parse_size, ("500MB", "1.5GiB", "1000000")),
    (lambda text: FrameOptions(parse_roi(text)), ("0.25,0,0.5,1", "10,20,300,200")),
    (parse_assignment, ("smoothing=vote", "thresholds.stop=0.5", 'train.name="x"', "a=[1, 2]")),
    (parse_normalize, ("127.5,127.5", "unit")),
)  # fmt: skip

_OPTIONS = (
    "--roi=0.1,0.1,0.5,0.5", "--roi=1,1,4,4", "--decision=smoothing=vote", "--decision=memory=9",
    "--decision=least_s=1.5", "--decision=temperature=1.5", "--save-max=500MB", "--save-below=0.5", "--save=all",
    "--size=640x480", "--format=MJPG", "--rate=30", "--rotate=90", "--every=2", "--max-fps=5", "--max-age=10",
    "--motion=0.1", "--threshold=0.5", "--threads=1", "--max-frames=1", "--give-up-after=3",
    "--delegate-option=device=usb:1", "--mqtt=mqtt", "--webhook=http", "--metrics=[", "--web-token=x",
)  # fmt: skip


@contextlib.contextmanager
def texts(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Parse a damaged text. Some parsers raise ValueError, which the command line converts to an error message."""

    def attempt(rng: Random) -> None:
        read, valid = rng.choice(_READERS)
        try:
            read(damaged_text(rng, rng.choice(valid)))
        except EdgerecError as error:
            if "secret" in str(error):
                raise Broken(f"shows a password: {error}") from None
            raise
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            raise EdgerecError(str(error)) from None

    yield attempt


@contextlib.contextmanager
def options(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Run ``edgerec camera`` on a folder with one image, with one or two damaged options."""
    import cv2
    import numpy as np

    folder = work / "images"
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "one.png"), np.zeros((8, 8, 3), np.uint8))
    valid = [
        "camera",
        str(bundle),
        "--headless",
        f"--source={folder}",
        f"--save-dir={work / 'saved'}",
        "--save=changes",
    ]
    # Settings that the command line changes for its process.
    log = logging.getLogger("edgerec")
    before, known = signal.getsignal(signal.SIGTERM), (log.handlers[:], log.level, log.propagate)

    def attempt(rng: Random) -> None:
        chosen = rng.sample(_OPTIONS, rng.choice((1, 1, 2)))
        damaged = [f"{name}={damaged_text(rng, value)}" for name, _, value in (text.partition("=") for text in chosen)]
        log.handlers.clear()  # the handlers write to the stream of the previous attempt
        result = run_command([*valid, *(text.replace("\0", "0") for text in damaged)], exit_codes=(0, 1, 2))
        if result.exit_code == 1:
            raise EdgerecError(result.stderr.strip().removeprefix("error: "))
        if result.exit_code == 2:  # Typer prints several lines, the last of which contains the error
            raise EdgerecError(result.stderr.strip().splitlines()[-1])

    try:
        yield attempt
    finally:
        signal.signal(signal.SIGTERM, before)
        log.handlers[:], level, log.propagate = known
        log.setLevel(level)
