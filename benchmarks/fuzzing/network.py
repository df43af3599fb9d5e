"""Damaged requests to the web page, and damaged responses of a webhook's server."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgerec.camera.frame import Frame, Result
from edgerec.camera.sinks.web import WebSink
from edgerec.camera.sinks.webhook import Hook, Webhook
from edgerec.camera.states import State, StateChange
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import Category, Classification, Decision
from edgerec.errors import EdgerecError
from fuzzing.mutate import damaged_bytes, damaged_json, damaged_text
from fuzzing.servers import Peers, received
from fuzzing.tally import Attempt, Broken

END_S = 30.0
# For the answer to a request that may not be one: then the server waits for the rest of it.
ANSWER_S = 0.1


class Refused(EdgerecError):
    """The other side said no, as it should."""


@contextlib.contextmanager
def web(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Requests at the web page. Behind all of them it must still show itself."""
    labels = Bundle.open(bundle).manifest.labels
    with WebSink(port=0, labels=labels, save_dir=work / "labelled") as page:
        page.state(StateChange("camera", State.LIVE, time.monotonic()))
        page.write(_result(labels))
        port = int(re.findall(r":(\d+)/", page.url)[0])

        def attempt(rng: Random) -> None:
            answer = _asked(port, _request(rng, port), ANSWER_S)
            if b"Traceback" in answer or answer.startswith(b"HTTP/1.1 500"):
                raise Broken(repr(answer[:200]))
            if not answer.startswith(b"HTTP/1.1 2"):
                raise Refused(f"answers {answer[:12].decode('latin-1') or 'nothing'}")

        yield attempt
        good = _asked(port, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode(), END_S)
        if not good.startswith(b"HTTP/1.1 200"):
            raise Broken(f"a good request gets {good[:100]!r}")
    outside = [file for file in work.rglob("*") if file.is_file() and not file.is_relative_to(work / "labelled")]
    if outside:
        raise Broken(f"wrote {outside[0]}")


def _request(rng: Random, port: int) -> bytes:
    host = f"Host: 127.0.0.1:{port}\r\n"
    path = rng.choice(("/", "/page.js", "/events", "/picture/0?after=-1", "/held/0123456789abcdef"))
    line = f"GET {path} HTTP/1.1\r\n{host}Accept: text/html\r\nCookie: a=b; edgerec_{port}=x\r\n\r\n"
    if rng.random() < 0.4:
        values = rng.choice(({"source": 0, "frame": 0}, {"hold": "0123456789abcdef", "index": 1}))
        content = damaged_json(rng, values) if rng.random() < 0.6 else b'{"source": 0, "frame": 0}'
        line = (
            f"POST {rng.choice(('/hold', '/save'))} HTTP/1.1\r\n{host}Content-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nOrigin: http://127.0.0.1:{port}\r\n\r\n"
        )
        return line.encode() + content if rng.random() < 0.5 else damaged_bytes(rng, line.encode()) + content
    if rng.random() < 0.5:
        return line.replace(path, damaged_text(rng, path), 1).encode("utf-8", "replace")
    return damaged_bytes(rng, line.encode())


def _asked(port: int, request: bytes, seconds: float) -> bytes:
    """The beginning of the answer; empty when none comes."""
    with socket.create_connection(("127.0.0.1", port), END_S) as connected, contextlib.suppress(OSError):
        connected.sendall(request)
        connected.settimeout(seconds)
        return connected.recv(65536)
    return b""


@contextlib.contextmanager
def webhook(bundle: Path, work: Path) -> Iterator[Attempt]:
    """What a webhook's server answers."""
    answer = b""

    def serve(connected: socket.socket) -> None:
        received(connected, b"}")
        connected.sendall(answer)

    with Peers(serve) as peers, contextlib.ExitStack() as stack:
        hook = Hook.parse(f"http://me:secret@127.0.0.1:{peers.port}/hook?key=1")
        sink = Webhook(hook, secret="secret", every_result=True, timeout_s=5.0, tries=1)
        stack.callback(sink.close)
        result = _result(("one", "two"))

        def attempt(rng: Random) -> None:
            nonlocal answer
            answer = damaged_bytes(rng, b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: y\r\n\r\n")
            dropped, known = sink.dropped, sink.sent + sink.dropped
            sink.write(result)
            _wait(lambda: sink.sent + sink.dropped > known, "no answer is an answer, too")
            if sink.dropped > dropped:
                raise Refused("was counted as dropped")

        yield attempt


def _wait(condition: Callable[[], bool], trouble: str) -> None:
    end = time.monotonic() + END_S
    while not condition():
        if time.monotonic() > end:
            raise Broken(trouble)
        time.sleep(0.001)


def _result(labels: Any) -> Result:
    now = time.monotonic()
    answer = Classification(labels[0], 0, 0.75, (Category(labels[0], 0, 0.75),), np.float32([0.75, 0.25]))
    frame = Frame(np.zeros((8, 8, 3), np.uint8), 0, now, "camera", "camera")
    return Result(frame, answer, now, Decision(labels[0], 0, 0.75, now, True))
