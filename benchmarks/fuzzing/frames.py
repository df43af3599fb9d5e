"""Damaged motion JPEG over HTTP: the answer's head, the parts, the pictures."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from edgerec.camera.sources import open_source
from edgerec.errors import SourceError
from fuzzing.mutate import damaged_bytes
from fuzzing.servers import Peers, received
from fuzzing.tally import Attempt, Broken

_HEADS = (
    b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame\r\nTransfer-Encoding: chunked\r\n\r\n",
    b'HTTP/1.1 401 No\r\nWWW-Authenticate: Digest realm="a", nonce="b", qop="auth"\r\nContent-Length: 0\r\n\r\n',
    b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="a"\r\nContent-Length: 0\r\n\r\n',
    b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 3000\r\n\r\n",
)


@contextlib.contextmanager
def streams(bundle: Path, work: Path) -> Iterator[Attempt]:
    """A stream of three pictures, read to its end; taken when a picture comes out of it."""
    pictures = [_jpeg(number) for number in range(3)]
    answer = b""

    def serve(connected: socket.socket) -> None:
        received(connected, b"\r\n\r\n")
        connected.sendall(answer)

    with Peers(serve) as peers:

        def attempt(rng: Random) -> None:
            nonlocal answer
            answer = _answer(rng, pictures)
            source = open_source(f"http://me:secret@127.0.0.1:{peers.port}/camera")
            seen = 0
            try:
                for image, _ in source.images():
                    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                        raise Broken(f"a picture of {image.dtype}, {image.shape}")
                    seen += 1
            except SourceError:
                if not seen:
                    raise
            finally:
                source.close()

        yield attempt


def _answer(rng: Random, pictures: list[bytes]) -> bytes:
    head, where = rng.choice((_HEADS[0], _HEADS[0], *_HEADS)), rng.choice(("head", "parts", "pictures", "all"))
    if where == "pictures":
        pictures = [damaged_bytes(rng, picture, within=((0, 700),)) for picture in pictures]
    parts = b"".join(
        b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(picture), picture)
        for picture in pictures
    )
    if where == "parts":
        parts = damaged_bytes(rng, parts)
    if b"chunked" in head:
        parts = b"%x\r\n%s\r\n0\r\n\r\n" % (len(parts), parts)
    if where == "head":
        head = damaged_bytes(rng, head)
    return damaged_bytes(rng, head + parts) if where == "all" else head + parts


def _jpeg(number: int) -> bytes:
    import cv2

    small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, 5 * (number == 2), cv2.IMWRITE_JPEG_PROGRESSIVE, number == 1]
    return bytes(cv2.imencode(".jpg", cv2.resize(small, (160, 120)), list(map(int, options)))[1])
