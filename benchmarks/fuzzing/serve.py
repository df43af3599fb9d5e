"""Damaged requests to a running ``edgerec serve``: heads, bodies, images, wrong lengths, and unfinished connections.

Each complete response must have a status of 2xx, 4xx or 503, and a JSON body unless it is a text page. At the end, the
server must still classify an image, and its memory and file descriptors must return to the level before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from edgerec.errors import EdgerecError
from fuzzing.http import send_request
from fuzzing.mutate import damaged_bytes
from fuzzing.tally import Attempt, Broken

MAX_BODY_BYTES = 1_000_000
# Additional memory that the server may use after the last case.
MAX_MEMORY_BYTES = 64 << 20
MAX_HELD = 40
START_S, RECOVERY_S, RESPONSE_S = 60.0, 60.0, 0.5
_TEXT_PAGES = re.compile(rb"(GET|HEAD) (/|/metrics)(\?\S*)? ")
_PATHS = ("/classify", "/classify", "/classify", "/healthz", "/", "/openapi.json", "/metrics", "/classify/", "/%00")
_ENDINGS = ("open", "open", "open", "half", "half", "closed", "reset", "held")


@contextlib.contextmanager
def serve(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Start ``edgerec serve``, and send one damaged connection for each case."""
    images = [file.read_bytes() for file in sorted((bundle / "golden").glob("*.png"))] or [b"x"]
    options = ["--listen", "127.0.0.1:0", "--max-body", str(MAX_BODY_BYTES), "--max-queue", "32"]
    command = [sys.executable, "-m", "edgerec", "serve", str(bundle), *options]
    with (work / "log.txt").open("w+") as log, subprocess.Popen(command, stderr=log) as server:
        held: list[socket.socket] = []
        try:
            port = _port(log.name, server)
            for _ in range(30):
                _expect_ok(port, images[0])
            before = _memory_bytes(server.pid), _descriptors(server.pid)

            def attempt(rng: Random) -> None:
                request = b"".join(_request(rng, images, port) for _ in range(rng.choice((1, 1, 1, 2, 30))))
                if rng.random() < 0.5:
                    request = damaged_bytes(rng, request, within=((0, 300), (0, 1000)))
                statuses = _send(rng, port, request, held)
                if rng.random() < 0.05:
                    _expect_ok(port, images[0])
                if any(status != 200 for status in statuses):
                    raise EdgerecError(f"the statuses are {statuses[:20]}")

            yield attempt
            for connection in held:
                connection.close()
            _check_recovery(server, port, images[0], before)
        finally:
            server.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
        # Decoders such as libpng write the reason for an unreadable image to stderr.
        output = Path(log.name).read_text()
        if server.returncode or re.search("^(error|warning|Traceback|the server failed)", output, re.MULTILINE):
            raise Broken(f"the server ends with exit code {server.returncode}: {output[-500:]!r}")


def _request(rng: Random, images: list[bytes], port: int) -> bytes:
    """Return a request whose body and length are valid or wrong."""
    image = rng.choice(images)
    content = rng.choice((image, damaged_bytes(rng, image), image[: rng.randrange(len(image))], _huge_png(rng), b""))
    kind = rng.choice(("image/png", "image/jpeg", "application/octet-stream", "text/plain", "\xff", ""))
    if rng.random() < 0.4:
        content, kind = _form(rng, content)
    if rng.random() < 0.05:
        content += bytes(rng.choice((100_000, MAX_BODY_BYTES, 2 * MAX_BODY_BYTES)))
    method, path = rng.choice(("POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "X")), rng.choice(_PATHS)
    head = f"{method} {path} HTTP/1.{rng.choice('1110')}\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Content-Type: {kind}\r\n" if rng.random() < 0.9 else ""
    head += rng.choice(("", "", "Expect: 100-continue\r\n", "Connection: close\r\n", "Upgrade: websocket\r\n"))
    if rng.random() < 0.3:
        sizes = [rng.choice((1, 10, 100, 5000)) for _ in range(200)]
        head += "Transfer-Encoding: chunked\r\n"
        content = b"".join(_chunks(content, sizes)) + b"0\r\n\r\n"
    if "chunked" not in head or rng.random() < 0.1:
        length = rng.choice((len(content),) * 8 + (0, len(content) + 5, len(content) // 2, -1, 10**19, 10**400))
        head += f"Content-Length: {length}\r\n"
    return head.encode("latin-1") + b"\r\n" + content


def _chunks(content: bytes, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        if content:
            chunk, content = content[:size], content[size:]
            yield b"%x\r\n%s\r\n" % (len(chunk), chunk)
    if content:
        yield b"%x\r\n%s\r\n" % (len(content), content)


def _form(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Return a multipart body with one or more files, in most cases damaged, and the content type."""
    field = rng.choice(('name="image"; filename="a.png"', "name*=utf-8''%ff; filename*=x''%00", 'filename="\\"', ""))
    part = f"--limit\r\nContent-Disposition: form-data; {field}\r\n\r\n".encode() + content + b"\r\n"
    body = part * rng.choice((1, 1, 3, 65)) + b"--limit--\r\n"
    if rng.random() < 0.5:
        body = damaged_bytes(rng, body, within=((0, 100), (max(0, len(body) - 20), len(body))))
    boundary = rng.choice(("limit", "limit", "limit", '"limit"', "l" * 300, "", "*0=li; boundary*1=mit", "\xff"))
    return body, f"multipart/form-data; boundary={boundary}"


def _huge_png(rng: Random) -> bytes:
    side = rng.choice((0, 1, 5000, 1 << 31)).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + side + side + b"\x08\x02\0\0\0" + rng.randbytes(100)


def _send(rng: Random, port: int, request: bytes, held: list[socket.socket]) -> list[int]:
    """Send a request, end the connection in one of several ways, and return the statuses of the responses."""
    ending, content = rng.choice(_ENDINGS), b""
    connection = socket.create_connection(("127.0.0.1", port), START_S)
    connection.settimeout(RESPONSE_S)
    with contextlib.suppress(OSError):
        at = rng.choice((0, 1, rng.randrange(len(request) + 1)))
        for part in (request[:at], request[at:]):  # the server receives the request in two parts
            connection.sendall(part)
        if ending == "held":
            held.append(connection)
            if len(held) > MAX_HELD:
                held.pop(0).close()
            return []
        if ending == "half":
            connection.shutdown(socket.SHUT_WR)
        while ending in ("open", "half") and (more := connection.recv(1 << 20)):
            content += more
            if ending == "open" and _is_complete(content):
                break
    if ending == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    return _statuses(content, request)


def _is_complete(content: bytes) -> bool:
    head, end, body = content.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end and length and len(body) >= int(length[1]))


def _statuses(content: bytes, request: bytes) -> list[int]:
    """Check all responses, and return their statuses."""
    statuses = []
    while content:
        head, end, content = content.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
        if not match or not end:
            raise Broken(f"the response starts with {head[:200]!r}")
        status = int(match[1])
        if status == 100:
            continue
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        is_json = b"application/json" in head
        size = int(length[1]) if length else len(content)
        if content.startswith(b"HTTP/1.") or not content:  # e.g. the response to HEAD
            size = 0
        body, content = content[:size], content[size:]
        if not (200 <= status < 300 or 400 <= status < 500 or status == 503):
            raise Broken(f"the status is {status}: {body[:200]!r}")
        if body and is_json:
            with contextlib.suppress(ValueError if len(body) < size else ZeroDivisionError):
                json.loads(body)
        elif body and (status != 200 or not _TEXT_PAGES.search(request)):
            raise Broken(f"the response with status {status} is not JSON: {head[:200]!r} {body[:100]!r}")
        statuses.append(status)
    return statuses


def _expect_ok(port: int, image: bytes) -> None:
    for method, path, body in (("GET", "/healthz", b""), ("POST", "/classify", image)):
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        response = send_request(port, head.encode() + body, START_S)
        if not response.startswith(b"HTTP/1.1 200"):
            raise Broken(f"a valid request for {path} gets {response[:200]!r}")


def _check_recovery(server: subprocess.Popen[bytes], port: int, image: bytes, before: tuple[int, int]) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while True:
        memory_bytes, descriptors = _memory_bytes(server.pid) - before[0], _descriptors(server.pid) - before[1]
        if memory_bytes <= MAX_MEMORY_BYTES and descriptors <= 0:
            break
        if time.monotonic() > deadline:
            raise Broken(f"the server keeps {memory_bytes >> 20} MiB and {descriptors} file descriptors")
        time.sleep(0.5)
    _expect_ok(port, image)


def _memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _port(log: str, server: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + START_S
    while not (match := re.search(r"http://127\.0\.0\.1:(\d+)", Path(log).read_text())):
        if server.poll() is not None or time.monotonic() > deadline:
            raise Broken(f"the server does not start: {Path(log).read_text()[-500:]}")
        time.sleep(0.05)
    return int(match[1])
