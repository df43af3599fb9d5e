"""Damaged HTTP messages: requests to the web page and the metrics, and responses of cameras and webhook servers."""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from edgerec.errors import EdgerecError
from fuzzing.isolation import Target
from fuzzing.mutate import damaged_bytes, damaged_json, damaged_text
from fuzzing.servers import Peers, received
from fuzzing.tally import Broken

SECRET, TOKEN = "hush4711", "token-hush4711"
_BASIC = base64.b64encode(f"me:{SECRET}".encode())
_WAIT_S = 20.0
# Maximum time in seconds to wait for the response to a damaged request. The server may send none, because it waits for
# the rest of the request.
_RESPONSE_S = 0.3
_MANIFEST = SimpleNamespace(
    name="signs", target="rpi", variant="int8", labels=("stop", "go"), model="model.tflite", files={}
)
_HEADS = (
    b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 3000\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n\r\n",
    b'HTTP/1.1 401 No\r\nWWW-Authenticate: Digest realm="a", nonce="b", qop="auth"\r\nContent-Length: 0\r\n\r\n',
    b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="a"\r\nContent-Length: 0\r\n\r\n',
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:@OTHER@/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 Moved\r\nLocation: //127.0.0.1:@OTHER@/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 500 @REQUEST@\r\n\r\n",
    b"@REQUEST@",
)
_WEBHOOK = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: y\r\n\r\n"


def start(work: Path) -> list[bytes]:
    """Import the modules that the cases use, and return small JPEG files."""
    import cv2
    import prometheus_client  # noqa: F401
    import starlette.applications  # noqa: F401
    import uvicorn  # noqa: F401

    import edgerec.camera.sinks.prometheus
    import edgerec.camera.sinks.web
    import edgerec.camera.sinks.webhook
    import edgerec.camera.sources.mjpeg
    import edgerec.camera.sources.opencv_capture  # noqa: F401

    images = (np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8) for number in range(2))
    return [bytes(cv2.imencode(".jpg", image)[1]) for image in images]


def make(rng: Random, seeds: list[bytes], folder: Path) -> tuple[str, list[bytes]]:
    """Return the kind of peer to simulate, and the bytes that it sends in each connection."""
    kind = rng.choice(("page", "locked page", "metrics", "camera", "camera", "webhook"))
    makers: dict[str, Callable[[], bytes]] = {
        "page": lambda: _page_request(rng),
        "locked page": lambda: _page_request(rng),
        "metrics": lambda: damaged_bytes(rng, b"GET /metrics?name[]=edgerec_frames HTTP/1.1\r\nHost: x\r\n\r\n"),
        "camera": lambda: _camera_response(rng, seeds),
        "webhook": lambda: damaged_bytes(rng, rng.choice((_WEBHOOK, _WEBHOOK, *_HEADS))),
    }
    return kind, [makers[kind]() for _ in range(rng.choice((1, 2, 4)))]


def use(damaged: tuple[str, list[bytes]], out: Path) -> None:
    """Send the damaged messages to edgerec. Check that it works afterwards, and that errors contain no secrets."""
    kind, messages = damaged
    try:
        {"page": _page, "locked page": _locked_page, "metrics": _metrics, "camera": _camera, "webhook": _webhook}[kind](
            messages, out
        )
    except EdgerecError as error:
        if SECRET in str(error) or _BASIC.decode() in str(error):
            raise Broken(f"the error shows the password: {str(error)[:200]}") from None
        raise


TARGET = Target(start, make, use, timeout_s=120.0, memory_bytes=512 << 20, network=True)


def _page_request(rng: Random) -> bytes:
    paths = ("/", "/page.js", "/events", "/image/0?after=-1", "/held/0123456789abcdef", f"/?token={TOKEN[:-1]}x")
    path, fields = rng.choice(paths), "Host: 127.0.0.1:@PORT@\r\n"
    if rng.random() < 0.4:
        body = damaged_json(rng, rng.choice(({"source": 0, "frame": 0}, {"hold": "0123456789abcdef", "index": 1})))
        fields += (
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nOrigin: http://127.0.0.1:@PORT@\r\n"
        )
        head = f"POST {rng.choice(('/hold', '/save'))} HTTP/1.1\r\n{fields}\r\n".encode()
        return damaged_bytes(rng, head) + body if rng.random() < 0.5 else head + body
    head = f"GET {path} HTTP/1.1\r\n{fields}Accept: text/html\r\nCookie: a=b; edgerec_@PORT@=x\r\n\r\n"
    if rng.random() < 0.5:
        return head.replace(path, damaged_text(rng, path), 1).encode("utf-8", "replace")
    return damaged_bytes(rng, head.encode())


def _camera_response(rng: Random, images: list[bytes]) -> bytes:
    head = rng.choice((_HEADS[0], _HEADS[6], _HEADS[6], *_HEADS))
    parts = b"".join(
        b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(image), image)
        for image in images
    )
    if b"chunked" in head:
        parts = b"%x\r\n%s\r\n0\r\n\r\n" % (len(parts), parts)
    content = head + (parts if head.startswith(b"HTTP/1.") and b" 200 " in head[:13] else b"")
    if rng.random() < 0.1:
        return content
    # Do not damage the target of a redirect, because edgerec would resolve a changed host name with DNS.
    end = content.find(b"Location") if b"Location" in content else len(content)
    return damaged_bytes(rng, content[:end], within=((0, len(head)),)) + content[end:]


def _page(messages: list[bytes], out: Path, token: str | None = None) -> None:
    from edgerec.camera.sinks.web import WebSink
    from edgerec.camera.source_state import SourceState, StateChange

    with WebSink(port=0, labels=_MANIFEST.labels, token=token, save_dir=out / "saved") as page:
        page.state(StateChange("camera", SourceState.LIVE, time.monotonic()))
        page.write(_result())
        port = urlsplit(page.url).port or 0
        for message in messages:
            response = send_request(port, message.replace(b"@PORT@", str(port).encode()), _RESPONSE_S)
            if b"Traceback" in response or response.startswith(b"HTTP/1.1 500") or TOKEN.encode() in response:
                raise Broken(f"the page returns {response[:200]!r}")
        permit = f"Authorization: Bearer {token}\r\n" if token else ""
        _expect_ok(port, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{permit}\r\n")


def _locked_page(messages: list[bytes], out: Path) -> None:
    _page(messages, out, TOKEN)


def _metrics(messages: list[bytes], out: Path) -> None:
    from edgerec.camera.sinks.prometheus import Prometheus

    with Prometheus(_MANIFEST, port=0) as sink:  # type: ignore[arg-type]
        sink.write(_result())
        for message in messages:
            if b"Traceback" in (response := send_request(sink.port, message, _RESPONSE_S)):
                raise Broken(f"the metrics endpoint returns {response[:200]!r}")
        _expect_ok(sink.port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")


def _camera(messages: list[bytes], out: Path) -> None:
    from edgerec.camera.sources import find_source

    elsewhere: list[bytes] = []

    def serve_other(connected: socket.socket) -> None:
        elsewhere.append(received(connected, b"\r\n\r\n"))
        connected.sendall(_HEADS[5])

    with Peers(serve_other) as other, Peers(_sender(messages, other.port)) as peers:
        address = find_source(f"http://me:{SECRET}@127.0.0.1:{peers.port}/camera?pwd={SECRET}")
        try:
            _read(address.open())
        finally:
            if SECRET in address.name or any(b"authorization" in request.lower() for request in elsewhere):
                raise Broken("the password is shown, or sent to another server")


def _read(source: Any) -> None:
    try:
        for number, (image, name) in enumerate(source.images()):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size or SECRET in name:
                raise Broken(f"an image of {image.dtype}, {image.shape}, named {name}")
            if number == 3:
                return
    finally:
        source.close()


def _webhook(messages: list[bytes], out: Path) -> None:
    from edgerec.camera.sinks.webhook import Webhook, WebhookAddress

    with Peers(_sender(messages, 9)) as peers:
        address = WebhookAddress.parse(f"http://me:{SECRET}@127.0.0.1:{peers.port}/hook?key=1")
        sink = Webhook(address, secret="secret", every_result=True, timeout_s=5.0, tries=1)
        for _ in messages:
            sink.write(_result())
        end = time.monotonic() + _WAIT_S
        while sink.sent + sink.dropped < len(messages):
            if time.monotonic() > end:
                raise Broken("a post is neither sent nor counted as dropped")
            time.sleep(0.001)
        sink.close()


def _sender(messages: list[bytes], other: int) -> Callable[[socket.socket], None]:
    """Return a server that sends one message per connection, in order, and then repeats the last message."""
    remaining = list(messages)

    def serve(connected: socket.socket) -> None:
        request = received(connected, b"\r\n\r\n")
        message = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        line = request.splitlines()[0] if request else b""
        connected.sendall(message.replace(b"@OTHER@", str(other).encode()).replace(b"@REQUEST@", line))

    return serve


def send_request(port: int, request: bytes, seconds: float) -> bytes:
    """Send a request to this machine, and return the first part of the response, or nothing after ``seconds``."""
    with socket.create_connection(("127.0.0.1", port), _WAIT_S) as connected, contextlib.suppress(OSError):
        connected.sendall(request)
        connected.settimeout(seconds)
        return connected.recv(65536)
    return b""


def _expect_ok(port: int, request: str) -> None:
    response = send_request(port, request.encode(), _WAIT_S)
    if not response.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
        raise Broken(f"a valid request gets {response[:100]!r}")


def _result() -> Any:
    from edgerec.camera.frame import Frame, Result
    from edgerec.contract.decision import Category, Classification, Decision

    now = time.monotonic()
    prediction = Classification("go", 1, 0.75, (Category("go", 1, 0.75),), np.float32([0.25, 0.75]))
    frame = Frame(np.zeros((8, 8, 3), np.uint8), 0, now, "camera", "camera")
    return Result(frame, prediction, now, Decision("go", 1, 0.75, now, True))
