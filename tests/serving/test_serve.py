"""Tests of ``edgerec serve`` with a running server: predictions, errors, limits, the token and the shutdown."""

from __future__ import annotations

import asyncio
import gc
import http.client
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

pytest.importorskip("python_multipart", reason='no python-multipart (pip install "edgerec[serve]")')

import uvicorn

from edgerec import ClassificationServer, ServeConfig, create_app, predict
from edgerec.errors import BundleError, ConfigError, EdgerecError
from edgerec.http.server import Server
from edgerec.http.server_address import listen
from edgerec.serving import pool, request_body
from tests.conftest import error_line
from tests.network import wait_for

PREDICTION = ("label", "index", "score", "categories", "novelty")


def send(server, method="POST", path="/classify", body=None, kind="image/png", **headers):
    """Send a request and return the status, headers and content of the response."""
    address = urlsplit(server.address) if hasattr(server, "address") else urlsplit(server)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and kind:
        headers = {"Content-Type": kind} | headers
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    is_json = response.headers.get_content_type() == "application/json"
    return SimpleNamespace(
        status=response.status,
        headers=response.headers,
        body=json.loads(content) if is_json else content.decode(),
    )


def form(*files, boundary="limit"):
    """Return the body and content type of a form with pairs of file names and contents."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def expected(bundle, path):
    """Return the fields of the prediction that ``edgerec predict --json`` prints for a file."""
    fields = next(predict(bundle, [path])).to_dict()
    return {key: fields[key] for key in PREDICTION if key in fields}


def jpeg_with_orientation(image, value):
    """Return a JPEG file whose EXIF data contains an orientation."""
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, value, 0, 0)
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def png_header(width, height):
    """Return a PNG file that has a header but no pixels."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))


@pytest.fixture(scope="module")
def server(bundle):
    """Start a server that is shared by all tests in this module."""
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", workers=2)) as server:
        yield server


@pytest.fixture
def digit(golden_images):
    return golden_images[3].read_bytes()


@pytest.fixture
def blocked(monkeypatch):
    """Block each classification until the event ``release`` is set."""
    release, started, classify_file = threading.Event(), threading.Semaphore(0), pool.classify_file

    def wait_and_classify(*arguments):
        started.release()
        assert release.wait(30)
        return classify_file(*arguments)

    monkeypatch.setattr(pool, "classify_file", wait_and_classify)
    yield SimpleNamespace(release=release, started=started)
    release.set()


# Predictions.


def test_response_equals_predict_for_every_golden_image(server, bundle, golden_images):
    for path in golden_images:
        response = send(server, body=path.read_bytes())
        assert (response.status, response.body) == (200, expected(bundle, path))


def test_response_equals_predict_for_all_formats(server, bundle, golden_images, tmp_path):
    digit = cv2.resize(cv2.imread(str(golden_images[7])), (61, 47))
    deep = digit.astype(np.uint16) * 257
    files = {f"turned{value}.jpg": jpeg_with_orientation(digit, value) for value in range(1, 9)}
    files["gray.jpg"] = cv2.imencode(".jpg", digit[:, :, 0])[1].tobytes()
    files["alpha.png"] = cv2.imencode(".png", cv2.cvtColor(digit, cv2.COLOR_BGR2BGRA))[1].tobytes()
    files["deep.png"] = cv2.imencode(".png", deep)[1].tobytes()
    files["deep.tiff"] = cv2.imencode(".tiff", deep[:, :, 0] // 16)[1].tobytes()
    for suffix in (".bmp", ".webp", ".tiff", ".ppm"):
        files[f"digit{suffix}"] = cv2.imencode(suffix, digit)[1].tobytes()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        response = send(server, body=content, kind="application/octet-stream")
        assert (response.status, response.body) == (200, expected(bundle, tmp_path / name)), name
    # Check that the prediction depends on the orientation.
    assert len({json.dumps(expected(bundle, tmp_path / f"turned{value}.jpg")) for value in range(1, 9)}) > 1


def test_form_returns_one_result_per_file_in_order(server, bundle, golden_images):
    files = [(path.name, path.read_bytes()) for path in golden_images]
    body, kind = form(*files)
    response = send(server, body=body, kind=kind)
    assert response.status == 200
    assert response.body == {"results": [{"file": p.name} | expected(bundle, p) for p in golden_images]}


def test_64_clients_at_once_receive_their_own_predictions(server, bundle, golden_images):
    predictions = [expected(bundle, path) for path in golden_images]
    contents = [path.read_bytes() for path in golden_images]
    barrier = threading.Barrier(64)

    def classify(number):
        barrier.wait(30)
        responses = [send(server, body=contents[(number + step) % len(contents)]).body for step in range(8)]
        return responses == [predictions[(number + step) % len(contents)] for step in range(8)]

    with ThreadPoolExecutor(64) as clients:
        assert all(clients.map(classify, range(64)))


def test_connection_is_kept_open_for_further_requests(server, bundle, digit, golden_images):
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.address).port, timeout=30)
    connection.connect()
    client = connection.sock.getsockname()
    for _ in range(3):
        connection.request("POST", "/classify", digit, {"Content-Type": "image/png"})
        assert json.loads(connection.getresponse().read()) == expected(bundle, golden_images[3])
        assert connection.sock.getsockname() == client
    connection.close()


def test_chunked_body_is_accepted(server, bundle, golden_images, digit):
    response = send(server, body=iter([digit[:100], digit[100:]]))
    assert (response.status, response.body) == (200, expected(bundle, golden_images[3]))


def test_threshold_replaces_that_of_the_bundle(bundle, digit):
    config = ServeConfig(bundle=bundle, address="127.0.0.1:0", threshold=1.0)
    with ClassificationServer(config) as server:
        assert send(server, body=digit).body["label"] == "unknown"


def test_delegate_none_runs_the_model_on_the_cpu(bundle, digit, golden_images):
    config = ServeConfig(bundle=bundle, address="127.0.0.1:0", delegate="none")
    with ClassificationServer(config) as server:
        assert send(server, body=digit).body == expected(bundle, golden_images[3])


def test_reduced_decoding_gives_the_scores_of_predict(bundle, golden_images, tmp_path):
    path = tmp_path / "ambiguous.jpg"
    digits = [cv2.resize(cv2.imread(str(image)), (240, 240)) for image in golden_images]
    # The trained weights decide whether reduced decoding changes the scores of an image, so several images are tried.
    for first, second in itertools.combinations(digits, 2):
        cv2.imwrite(str(path), cv2.addWeighted(first, 0.5, second, 0.5, 0))
        exact, reduced = ([*predict(bundle, [path], reduced_decoding=option)] for option in (False, True))
        if exact[0].to_dict()["categories"] != reduced[0].to_dict()["categories"]:
            break
    else:
        pytest.fail("reduced decoding changes the scores of none of the images")
    for reduced_decoding, (result,) in ((False, exact), (True, reduced)):
        config = ServeConfig(bundle=bundle, address="127.0.0.1:0", reduced_decoding=reduced_decoding)
        with ClassificationServer(config) as server:
            body = send(server, body=path.read_bytes(), kind="image/jpeg").body
        assert body["categories"] == result.to_dict()["categories"]


# Errors.


def many_files():
    return form(*[("image.png", b"")] * 65)


BAD_REQUESTS = {
    "not an image": ({"body": b"text"}, 400, "the request's body is not a readable image: OpenCV cannot decode it"),
    "other file": ({"body": b"%PDF-1.4"}, 400, "not a readable image: it is a PDF"),
    "empty": ({"body": b""}, 400, "the request's body is empty"),
    "damaged": ({"body": png_header(8, 8)}, 400, "not a readable image"),
    "too many pixels": (
        {"body": png_header(10_000, 10_000)},
        400,
        "10000×10000 pixels, but this server accepts",
    ),
    "content type": ({"body": b"{}", "kind": "application/json"}, 415, "'application/json' is not supported"),
    "curl's default": ({"body": b"x", "kind": "application/x-www-form-urlencoded"}, 415, "add -H 'Content-Type"),
    "no boundary": ({"body": b"x", "kind": "multipart/form-data"}, 400, "has no boundary"),
    "long boundary": ({"body": b"x", "kind": f"multipart/form-data; boundary={'b' * 999}"}, 400, "is malformed"),
    "cut off": ({"body": form(("a", b"x"))[0][:-9], "kind": form()[1]}, 400, "its last boundary is missing"),
    "no form": ({"body": b"text", "kind": form()[1]}, 400, "is malformed"),
    "no file": ({"body": form()[0], "kind": form()[1]}, 400, "contains no file"),
    "field": (
        {
            "body": b'--limit\r\nContent-Disposition: form-data; name="note"\r\n\r\nx\r\n--limit--\r\n',
            "kind": form()[1],
        },
        400,
        "the form field 'note' is not a file",
    ),
    "text in a form": ({"body": form(("a.txt", b"text"))[0], "kind": form()[1]}, 400, "the file 'a.txt' is not a"),
    "many files": ({"body": many_files()[0], "kind": many_files()[1]}, 413, "more than 64 files"),
    "path": ({"method": "GET", "path": "/nothing"}, 404, "Not Found: GET / describes"),
    "slash": ({"body": b"x", "path": "/classify/"}, 404, "Not Found: GET / describes"),
    "method": ({"method": "GET"}, 405, "Method Not Allowed: use POST"),
    "foreign host": ({"body": b"x", "Host": "evil.example"}, 421, "This host name is not allowed"),
    "foreign page": ({"body": b"x", "Origin": "http://evil.example"}, 403, "Web pages of other sites"),
    "headers": ({"body": b"x", "X-Long": "x" * 9000, "X-Other": "x" * 9000}, 431, "bytes of headers"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request_gets_a_status_and_an_error(server, name, caplog):
    request, status, message = BAD_REQUESTS[name]
    response = send(server, **request)
    assert response.status == status, response.body
    assert response.body.keys() == {"error"}
    assert message in response.body["error"]
    assert (response.headers["Allow"] == "POST") == (status == 405)
    assert not caplog.records  # Malformed requests must not fill the log.


def test_invalid_http_gets_a_json_error(server):
    with socket.create_connection(("127.0.0.1", urlsplit(server.address).port), 30) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert json.loads(body) == {"error": "the request is not valid HTTP: check the client"}


@contextmanager
def serving(app, fast):
    """Run a server with the parser httptools or h11, and yield its address."""
    if fast:
        pytest.importorskip("httptools", reason='no httptools (pip install "edgerec[serve]")')
    listener = listen("127.0.0.1", 0, "the server")
    server = Server(app, listener, fast=fast)
    server.start()
    try:
        yield listener.getsockname()
    finally:
        server.stop()


@pytest.mark.parametrize("fast", [False, True], ids=["h11", "httptools"])
def test_invalid_http_in_a_body_closes_the_connection_during_the_response(fast):
    async def unfinished_response(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"first part", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(unfinished_response, fast) as address, socket.create_connection(address, 30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        received = b""
        while not received.endswith(b"first part"):
            received += connection.recv(4096)
        connection.sendall(b"no HTTP\r\n\r\n")
        assert connection.recv(4096) == b""


@pytest.mark.parametrize("fast", [False, True], ids=["h11", "httptools"])
@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
@pytest.mark.parametrize("started", [False, True], ids=["before the response", "during the response"])
def test_invalid_http_after_a_complete_request_does_not_affect_its_response(fast, header, started):
    released = asyncio.Event()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        if scope["path"] == "/release":
            released.set()
        if started:
            await send(start)
        await released.wait()
        if not started:
            await send(start)
        await send({"type": "http.response.body", "body": b"ok"})

    def read(connection):
        return b"".join(iter(lambda: connection.recv(4096), b""))

    with serving(app, fast) as address, socket.create_connection(address, 30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + header + b"Content-Length: 2\r\n\r\nab")
        head = connection.recv(4096) if started else b""
        connection.sendall(b"no HTTP\r\n\r\n")
        # The server receives the invalid request before this request.
        with socket.create_connection(address, 30) as other:
            other.sendall(b"GET /release HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert read(other).startswith(b"HTTP/1.1 200 ")
        received = head + read(connection)
    first, body, rest = received.partition(b"\r\n\r\nok")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert body
    assert not rest or rest.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("fast", [False, True], ids=["h11", "httptools"])
def test_bytes_after_an_invalid_request_are_not_stored(fast):
    async def unfinished_response(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(unfinished_response, fast) as address, socket.create_connection(address, 30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert connection.recv(4096)
        tracemalloc.start()
        try:
            for _ in range(64):
                connection.sendall(bytes(1_000_000))
            assert tracemalloc.get_traced_memory()[0] < 16_000_000
        finally:
            tracemalloc.stop()


def test_invalid_http_after_queued_requests_does_not_affect_their_responses(bundle, digit, blocked):
    pytest.importorskip("httptools", reason='no httptools (pip install "edgerec[serve]")')  # h11 queues no requests.
    head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(digit)}\r\n\r\n".encode()
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0")) as server:
        with connect(server) as connection:
            connection.sendall(2 * (head + digit) + b"no HTTP\r\n\r\n")
            blocked.release.set()
            received = b"".join(iter(lambda: connection.recv(4096), b""))
        assert received.count(b"HTTP/1.1 200 ") == received.count(b"HTTP/1.1 ") == 2


def test_error_in_a_form_cancels_its_other_files(server, digit, caplog):
    body, kind = form(("a.txt", b"text"), *[("digit.png", digit)] * 30)
    for _ in range(10):
        assert send(server, body=body, kind=kind).status == 400
    assert send(server, body=digit).status == 200
    assert not caplog.records


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body_is_refused_and_the_client_sees_the_response(bundle, digit, chunked):
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", max_body_bytes=100_000)) as server:
        content = bytes(5_000_000)
        response = send(server, body=iter([content[:2_000_000], content[2_000_000:]]) if chunked else content)
        assert response.status == 413
        assert "larger than 100,000 bytes" in response.body["error"]
        assert send(server, body=digit).status == 200


def test_internal_error_is_logged_and_has_no_details(server, digit, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(pool, "classify_file", fail)
    response = send(server, body=digit)
    assert (response.status, response.body) == (500, {"error": "an internal error occurred: see the log of edgerec"})
    assert "RuntimeError" in caplog.text or "secret" in caplog.text


# Limits.


@contextmanager
def unfinished_upload(server, length, sent):
    """Open a connection that sends only the first ``sent`` bytes of a body of ``length`` bytes."""
    port = urlsplit(server.address).port
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        headers = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/png\r\n"
        connection.sendall(f"{headers}Content-Length: {length}\r\n\r\n".encode() + bytes(sent))
        yield connection


def test_slow_client_times_out_while_others_are_served(server, digit, monkeypatch):
    monkeypatch.setattr(request_body, "SILENCE_S", 0.3)
    monkeypatch.setattr(request_body, "DISCARD_S", 0.1)
    with ExitStack() as stack:
        slow = [stack.enter_context(unfinished_upload(server, 1000, 10)) for _ in range(20)]
        assert send(server, body=digit).status == 200
        for connection in slow:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_requests_are_refused_while_the_queue_is_full(bundle, digit, blocked):
    config = ServeConfig(bundle=bundle, address="127.0.0.1:0", workers=1, max_queued=2)
    with ClassificationServer(config) as server, ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(send, server, body=digit) for _ in range(2)]
        assert blocked.started.acquire(timeout=30)
        wait_for(lambda: "edgerec_images_queued 2.0" in send(server, "GET", "/metrics").body)
        refused = send(server, body=digit)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert "too many images are waiting" in refused.body["error"]
        blocked.release.set()
        assert [future.result(30).status for future in waiting] == [200, 200]
        assert send(server, body=digit).status == 200


def test_form_with_more_files_than_the_queue_has_room_for_is_refused(bundle, digit):
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", max_queued=2)) as server:
        body, kind = form(*[("digit.png", digit)] * 3)
        assert send(server, body=body, kind=kind).status == 503
        assert send(server, body=digit).status == 200


def test_unfinished_uploads_cannot_take_more_memory_than_four_bodies(bundle, digit, monkeypatch):
    monkeypatch.setattr(request_body, "DISCARD_S", 0.1)
    config = ServeConfig(bundle=bundle, address="127.0.0.1:0", max_body_bytes=50_000)
    with ClassificationServer(config) as server:
        with ExitStack() as stack:
            uploads = [stack.enter_context(unfinished_upload(server, 50_000, 49_000)) for _ in range(5)]
            uploads[4].settimeout(30)
            statuses = [uploads[4].recv(4096)[:12]]
        assert statuses == [b"HTTP/1.1 503"]
        # The server releases the memory after the clients have disconnected.
        wait_for(lambda: send(server, body=bytes(40_000)).status == 400)


def test_form_is_in_memory_once_while_its_files_are_classified(bundle, digit, blocked):
    content = digit + bytes(8_000_000)
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", workers=1)) as server:
        body, kind = form(("digit.png", content))
        with ThreadPoolExecutor(1) as clients:
            tracemalloc.start()
            response = clients.submit(send, server, body=body, kind=kind)
            assert blocked.started.acquire(timeout=60)
            # Wait until the threads of the client and parser have released their memory.
            wait_for(lambda: tracemalloc.get_traced_memory()[0] < 1.5 * len(content))
            tracemalloc.stop()
            blocked.release.set()
            assert response.result(30).status == 200


def test_rejected_images_are_released_without_garbage_collection(bundle, digit):
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", workers=1)) as server:
        body, kind = form(("digit.png", digit), *[("text.png", bytes(1_000_000))] * 2)
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(10):
                assert send(server, body=bytes(2_000_000)).status == 400
                assert send(server, body=body, kind=kind).status == 400
            # The worker thread refers to its last image until the next one arrives.
            wait_for(lambda: tracemalloc.get_traced_memory()[0] < 6_000_000)
        finally:
            tracemalloc.stop()
            gc.enable()


def test_image_that_has_waited_too_long_is_not_classified(server, digit, monkeypatch):
    classified = server.classified
    with monkeypatch.context() as context:
        context.setattr(pool, "MAX_WAIT_S", -1.0)
        response = send(server, body=digit)
        assert (response.status, response.headers["Retry-After"], server.classified) == (503, "1", classified)
    assert send(server, body=digit).status == 200


def test_health_check_fails_while_a_classifier_hangs(bundle, digit, blocked, monkeypatch):
    monkeypatch.setattr(pool, "HANG_S", 0.0)
    config = ServeConfig(bundle=bundle, address="127.0.0.1:0", workers=1)
    with ClassificationServer(config) as server, ThreadPoolExecutor(1) as clients:
        assert (send(server, "GET", "/healthz").status, server.healthy) == (200, True)
        request = clients.submit(send, server, body=digit)
        assert blocked.started.acquire(timeout=30)
        failing = send(server, "GET", "/healthz")
        assert (failing.status, failing.body, server.healthy) == (503, {"status": "failing"}, False)
        blocked.release.set()
        assert request.result(30).status == 200
        assert send(server, "GET", "/healthz").status == 200


def connect(server):
    connection = socket.create_connection(("127.0.0.1", urlsplit(server.address).port), 30)
    connection.settimeout(30)
    return connection


def test_endless_headers_end_the_connection(server, digit):
    content = b"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-Header: value\r\n" * 1_000_000
    with connect(server) as connection, pytest.raises(ConnectionError):
        connection.sendall(content)
    assert send(server, body=digit).status == 200


def test_pipelined_requests_are_limited(server):
    request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(3 * request)
        received = b""
        while received.count(b'"ok"') < 3:
            received += connection.recv(4096)
    with connect(server) as connection, suppress(ConnectionError):
        connection.sendall(1000 * request)
        received = b""
        while part := connection.recv(65536):
            received += part
        assert received.count(b'"ok"') < 1000


@pytest.fixture
def no_fast_packages(monkeypatch):
    for module in ("uvicorn.protocols.http.httptools_impl", "uvloop"):
        monkeypatch.setitem(sys.modules, module, None)


def test_server_works_without_httptools_and_uvloop(bundle, golden_images, no_fast_packages):
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0")) as server:
        for path in golden_images:
            assert send(server, body=path.read_bytes()).body == expected(bundle, path)
        with connect(server) as connection:
            connection.sendall(b"GARBAGE\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_server_uses_uvloop_if_it_is_installed(bundle, digit, monkeypatch):
    uvloop = pytest.importorskip("uvloop", reason='no uvloop (pip install "edgerec[serve]")')
    loops, new_event_loop = [], uvloop.new_event_loop
    monkeypatch.setattr(uvloop, "new_event_loop", lambda: loops.append(new_event_loop()) or loops[0])
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0")) as server:
        assert send(server, body=digit).status == 200
    assert len(loops) == 1


@pytest.mark.parametrize("fast", [True, False])
def test_client_that_waits_for_100_continue_gets_both_responses(bundle, golden_images, digit, fast, request):
    if not fast:
        request.getfixturevalue("no_fast_packages")
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0")) as server, connect(server) as client:
        head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(digit)}\r\nConnection: close\r\n"
        client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 100 ")
        client.sendall(digit)
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, json.loads(response.read())) == (200, expected(bundle, golden_images[3]))
        assert client.recv(4096) == b""


def test_bundle_must_be_signed_if_signers_are_listed(bundle, tmp_path, edgerec):
    (tmp_path / "signers").write_text("")
    message = error_line(edgerec("serve", bundle, "--allowed-signers", tmp_path / "signers"))
    assert "signed" in message


# Description and metrics.


def test_openapi_document_is_valid(server):
    validator = pytest.importorskip("openapi_spec_validator", reason="no openapi-spec-validator")
    validator.validate(send(server, "GET", "/openapi.json").body)


def test_responses_have_the_documented_schemas(server, golden_images):
    jsonschema = pytest.importorskip("jsonschema", reason="no openapi-spec-validator")
    document = send(server, "GET", "/openapi.json").body

    def check(name, value):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    content = golden_images[0].read_bytes()
    body, kind = form(("a.png", content), ("b.png", content))
    check("Prediction", send(server, body=content).body)
    check("Results", send(server, body=body, kind=kind).body)
    check("Error", send(server, body=b"text").body)
    for name, value in (("Prediction", {"label": "no such label"}), ("Results", {"results": [{}]}), ("Error", {})):
        with pytest.raises(jsonschema.ValidationError):
            check(name, value)


def test_document_states_whether_a_token_is_needed(server, bundle):
    assert "security" not in send(server, "GET", "/openapi.json").body
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", token="long secret")) as protected:
        document = send(protected, "GET", "/openapi.json", Authorization="Bearer long secret").body
        scheme = document["components"]["securitySchemes"][next(iter(document["security"][0]))]
        assert scheme == {"type": "http", "scheme": "bearer"}


def test_start_page_explains_the_requests(server):
    page = send(server, "GET", "/")
    assert page.headers.get_content_type() == "text/plain"
    assert f"--data-binary @photo.jpg {server.address}classify" in page.body


def test_metrics_count_requests_and_images(bundle, digit):
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0")) as server:
        body, kind = form(("a.png", digit), ("b.png", digit))
        assert [send(server, body=digit).status, send(server, body=body, kind=kind).status] == [200, 200]
        assert send(server, body=b"text").status == 400
        metrics = send(server, "GET", "/metrics").body
    for line in (
        'edgerec_requests_total{status="200"} 2.0',
        'edgerec_requests_total{status="400"} 1.0',
        "edgerec_request_seconds_count 3.0",
        "edgerec_images_total 3.0",
        "edgerec_images_queued 0.0",
    ):
        assert line in metrics.splitlines()
    assert server.classified == 3


# The token.


def test_token_is_required_for_everything_but_the_health_check(bundle, digit, monkeypatch):
    monkeypatch.setattr("edgerec.http.auth.WRONG_TOKEN_S", 0.0)
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", token="long secret")) as server:
        for path in ("/", "/metrics", "/openapi.json", "/nothing"):
            assert send(server, "GET", path).status == 401
        assert send(server, "GET", "/healthz").status == 200
        missing = send(server, body=digit)
        assert (missing.status, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "token" in missing.body["error"]
        assert send(server, body=digit, Authorization="Bearer long secret").status == 200
        wrong = [send(server, body=digit, Authorization="Bearer wrong").status for _ in range(11)]
        assert wrong == [401] * 10 + [429]


def test_wrong_token_with_a_large_body_is_answered(bundle, monkeypatch):
    monkeypatch.setattr("edgerec.http.auth.WRONG_TOKEN_S", 0.0)
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", token="long secret")) as server:
        assert send(server, body=bytes(5_000_000), Authorization="Bearer wrong").status == 401


def test_token_is_generated_if_other_machines_can_reach_the_address(bundle, digit):
    with ClassificationServer(ServeConfig(bundle=bundle, address="0.0.0.0:0")) as server:
        local = f"http://127.0.0.1:{urlsplit(server.address).port}/"
        assert len(server.token) >= 32
        assert send(local, body=digit).status == 401
        assert send(local, body=digit, Authorization=f"Bearer {server.token}").status == 200


def test_token_is_read_from_the_environment_and_never_logged(bundle, monkeypatch, caplog):
    caplog.set_level("DEBUG", "edgerec")
    monkeypatch.setenv("EDGEREC_SERVE_TOKEN", "SECRET-token")
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0")) as server:
        assert (server.token, server.token_is_generated) == ("SECRET-token", False)
        assert server.address in caplog.text
    assert "SECRET" not in caplog.text
    assert "SECRET" not in repr(ServeConfig(bundle=bundle, token="SECRET-token"))


def test_short_token_is_refused(bundle):
    with pytest.raises(EdgerecError, match="the server's token must have at least 8 characters, got 5"):
        ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", token="short"))


# Settings, start and shutdown.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "here there"}, "ServeConfig.address is 'here there'; expected HOST:PORT"),
        ({"threshold": 2.0}, "ServeConfig.threshold is 2.0; expected 0 to 1"),
        ({"threads": 0}, "ServeConfig.threads is 0; expected at least 1"),
        ({"max_queued": 0}, "ServeConfig.max_queued is 0; expected at least 1"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ServeConfig(bundle="bundle", **changes)


def test_port_is_free_again_if_the_bundle_cannot_be_opened(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with pytest.raises(BundleError):
            ClassificationServer(ServeConfig(bundle=tmp_path, address=f"127.0.0.1:{port}"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_requests_in_progress_are_finished_at_the_end(bundle, digit, golden_images, blocked):
    server = ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", workers=1))
    with ThreadPoolExecutor(4) as clients:
        waiting = [clients.submit(send, server, body=digit) for _ in range(3)]
        assert blocked.started.acquire(timeout=30)
        wait_for(lambda: "edgerec_images_queued 3.0" in send(server, "GET", "/metrics").body)
        closing = clients.submit(server.close)
        blocked.release.set()
        assert [future.result(30).body for future in waiting] == [expected(bundle, golden_images[3])] * 3
        closing.result(30)
    with pytest.raises(ConnectionRefusedError):
        send(server, body=digit)


def test_no_thread_remains_after_the_end(bundle, digit):
    before = set(threading.enumerate())
    with ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", workers=3)) as server:
        assert send(server, body=digit).status == 200
    assert {thread.name for thread in set(threading.enumerate()) - before} <= set()


@contextmanager
def serve_command(bundle, *options, **variables):
    """Run ``edgerec serve`` in a subprocess, and yield the process and the server's address."""
    command = [sys.executable, "-m", "edgerec", "serve", str(bundle), "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | variables) as process:
        try:
            line = process.stderr.readline()
            assert line.startswith("the server is at http://127.0.0.1:"), line
            yield process, line.split()[-1]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_busy_server_cleanly(bundle, digit, golden_images, number):
    prediction = expected(bundle, golden_images[3])
    with serve_command(bundle, "--workers", "2") as (process, address), ThreadPoolExecutor(8) as clients:
        classified = threading.Semaphore(0)

        def classify_until_refused():
            while True:
                try:
                    response = send(address, body=digit)
                except (ConnectionError, http.client.RemoteDisconnected):
                    return True
                assert (response.status, response.body) == (200, prediction)
                classified.release()

        running = [clients.submit(classify_until_refused) for _ in range(8)]
        for _ in range(20):
            assert classified.acquire(timeout=60)
        process.send_signal(number)
        assert all(future.result(60) for future in running)
        assert process.wait(60) == 0
        lines = process.stderr.read().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("the server has stopped after ")


def test_service_manager_is_told_when_the_server_is_ready(bundle, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with serve_command(bundle, **variables) as (process, _):
            assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            process.terminate()
            messages = {manager.recv(100)}
            while b"STOPPING=1" not in messages:
                messages.add(manager.recv(100))
            assert process.wait(60) == 0


def test_command_refuses_invalid_options(bundle, edgerec):
    assert "--max-body must be a size" in edgerec("serve", bundle, "--max-body", "much").stderr
    result = edgerec("serve", bundle, "--listen", "here there")
    assert (result.returncode, "--listen is 'here there'; expected HOST:PORT" in result.stderr) == (2, True)


def test_command_reports_a_port_in_use_in_one_line(bundle, edgerec, server):
    port = urlsplit(server.address).port
    message = error_line(edgerec("serve", bundle, "--listen", port))
    assert f"the server cannot listen on port {port} of 127.0.0.1: another program uses the port" in message


# The application for other ASGI servers.


def test_application_runs_in_another_asgi_server(bundle, digit, golden_images):
    before = set(threading.enumerate())
    config = ServeConfig(bundle=bundle, token="long secret", workers=1)
    other = uvicorn.Server(uvicorn.Config(create_app(config), port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=other.run)
    thread.start()
    try:
        wait_for(lambda: other.started)
        address = f"http://127.0.0.1:{other.servers[0].sockets[0].getsockname()[1]}/"
        assert send(address, body=digit).status == 401
        response = send(address, body=digit, Authorization="Bearer long secret")
        assert (response.status, response.body) == (200, expected(bundle, golden_images[3]))
    finally:
        other.should_exit = True
        thread.join(30)
    assert {thread.name for thread in set(threading.enumerate()) - before} <= set()
