"""Damaged and crafted motion JPEG streams: check that the extracted files are complete, and limit the CPU time."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing.isolation import Target
from fuzzing.mutate import damaged_bytes
from fuzzing.tally import Broken

_BOUNDARY = b"--frame"
# Maximum CPU time in seconds for a stream, and for each byte. The slowest files are those with 512 pixels per byte.
_BASE_S, _BYTE_S = 2.0, 50e-6
_MAX_BYTES = 200_000
_MARKERS = (0xC0, 0xC2, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xFE, 0xFF, 0x00)


def start(work: Path) -> list[bytes]:
    """Return small JPEG files: baseline, progressive, with restart markers, and grayscale."""
    import cv2

    import edgerec.camera.sources.mjpeg  # noqa: F401

    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    options: tuple[list[int], ...] = ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    files = [cv2.imencode(".jpg", image, each)[1] for each in options]
    return [bytes(file) for file in (*files, cv2.imencode(".jpg", image[..., 0])[1])]


def make(rng: Random, seeds: list[bytes], folder: Path) -> tuple[bytes, int]:
    """Return the bytes of a stream, and the number of bytes in each call of the splitter."""
    makers = (_repeated, _resized, _many_scans, _with_thumbnail, _cut_file)
    stream = b"".join(rng.choice(makers)(rng, seeds) for _ in range(rng.choice((1, 1, 3))))
    if rng.random() < 0.5:
        stream = damaged_bytes(rng, stream)
    return stream, rng.choice((100, 1460, 65_536, len(stream) + 1))


def use(damaged: tuple[bytes, int], out: Path) -> None:
    """Split and decode the stream, and check the result and the CPU time."""
    import cv2

    from edgerec.camera.sources.jpeg import JpegSplitter, decoded

    stream, step = damaged
    began_s, splitter = time.process_time(), JpegSplitter(_BOUNDARY)
    for at in range(0, len(stream), step):
        for file in splitter.feed(stream[at : at + step]):
            if file[:2] != b"\xff\xd8" or file[-2:] != b"\xff\xd9" or _BOUNDARY in file:
                raise Broken(f"a file of {len(file)} bytes is not complete")
            image: Any = decoded(cv2, file)
            if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or not image.size):
                raise Broken(f"an image of {image.dtype}, {image.shape}")
    used_s = time.process_time() - began_s
    if used_s > _BASE_S + _BYTE_S * len(stream):
        raise Broken(f"{len(stream)} bytes take {used_s:.1f} s of CPU time")


TARGET = Target(start, make, use, timeout_s=120.0, memory_bytes=1 << 30)


def _repeated(rng: Random, seeds: list[bytes]) -> bytes:
    """Return a repeated sequence of markers and segments, so that files seem to begin at many positions."""
    unit = b"\xff\xd8" * rng.randrange(2)
    for _ in range(rng.randrange(1, 5)):
        unit += bytes((0xFF, rng.choice(_MARKERS)))
        if rng.random() < 0.7:
            length = rng.choice((0, 1, 2, 4, 17, 300, 65_535))
            unit += length.to_bytes(2, "big") + rng.randbytes(rng.choice((0, max(0, length - 2) % 500)))
        if rng.random() < 0.1:
            unit += _BOUNDARY
    return unit * (rng.randrange(1, _MAX_BYTES) // len(unit) + 1) + rng.randbytes(rng.randrange(64))


def _resized(rng: Random, seeds: list[bytes]) -> bytes:
    """Return a JPEG file with another image size in its header and repeated compressed data."""
    file = rng.choice(seeds)
    at = max(file.find(b"\xff\xc0"), file.find(b"\xff\xc2")) + 5
    size = rng.choice((0, 1, 100, 8000, 65_535)).to_bytes(2, "big") + rng.choice((1, 100, 8000)).to_bytes(2, "big")
    file = file[:at] + size + file[at + 4 :]
    return file[:-2] + rng.choice((b"", b"\x00", file[-200:-2])) * rng.choice((1, 500)) + file[-2:]


def _many_scans(rng: Random, seeds: list[bytes]) -> bytes:
    file = rng.choice(seeds)
    return file[:-2] + file[file.find(b"\xff\xda") : -2] * rng.choice((2, 60, 300)) + file[-2:]


def _with_thumbnail(rng: Random, seeds: list[bytes]) -> bytes:
    file, thumbnail = rng.choice(seeds), rng.choice(seeds)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    return (file[:2] + segment + file[2:]) * rng.choice((1, 20))


def _cut_file(rng: Random, seeds: list[bytes]) -> bytes:
    file = rng.choice(seeds)
    return b"".join(file[: rng.randrange(len(file))] + _BOUNDARY + b"\r\n\r\n" for _ in range(rng.choice((1, 50))))
