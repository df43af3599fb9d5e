"""Tests that clients cannot lock other clients out of the servers, and cannot fill the disk or the memory."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("starlette", reason='no Starlette (pip install "edgerec[web]")')
pytest.importorskip("uvicorn", reason='no uvicorn (pip install "edgerec[web]")')

from edgerec.camera.frame import Frame
from edgerec.camera.sinks.prometheus import Prometheus
from edgerec.camera.sinks.web import WebSink
from edgerec.camera.sinks.web.label_store import LabelStore
from edgerec.contract.target import Target
from edgerec.errors import EdgerecError
from edgerec.export.install_and_service_files import install_files
from tests.network import MANIFEST, result

LABELS = ("stop", "go")


def send_request(port, path="/", body=None, source="127.0.0.1"):
    """Return status and body of one request from the address ``source``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10, source_address=(source, 0))
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def idle_connections(stack, port, count, content, source="127.0.0.1"):
    """Open connections that never send a complete request."""
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, (source, 0)))
        connection.sendall(content)


@pytest.mark.parametrize("content", [b"", b"GET / HTTP/1.1\r\nHost: 127"], ids=["silent", "half a request"])
def test_idle_connections_do_not_lock_anybody_out_of_the_page(content):
    with WebSink("127.0.0.1", 0, LABELS) as sink, ExitStack() as stack:
        port = urlsplit(sink.url).port
        idle_connections(stack, port, 140, content)
        assert [send_request(port)[0] for _ in range(5)] == [200] * 5
        assert send_request(port, source="127.0.0.2")[0] == 200


def test_idle_connections_from_many_addresses_do_not_lock_anybody_out():
    with WebSink("127.0.0.1", 0, LABELS) as sink, ExitStack() as stack:
        port = urlsplit(sink.url).port
        for number in range(2, 8):
            idle_connections(stack, port, 30, b"", f"127.0.0.{number}")
        assert [send_request(port)[0] for _ in range(5)] == [200] * 5


def test_connection_with_an_incomplete_response_is_not_closed_for_new_ones():
    with WebSink("127.0.0.1", 0, LABELS) as sink, ExitStack() as stack:
        port = urlsplit(sink.url).port
        events = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        stack.callback(events.close)
        events.request("GET", "/events")
        response = events.getresponse()
        idle_connections(stack, port, 140, b"")
        assert send_request(port)[0] == 200
        sink.write(result("go"))
        while b"go" not in response.readline():
            pass


def test_idle_connections_do_not_lock_anybody_out_of_the_metrics():
    with Prometheus(MANIFEST, port=0) as sink, ExitStack() as stack:
        idle_connections(stack, sink.port, 40, b"GET /metr")
        assert [send_request(sink.port, "/metrics")[0] for _ in range(3)] == [200] * 3


def frame(number):
    return Frame(np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8), number, 0.0, "door", "door")


def test_saved_images_have_a_quota_that_counts_earlier_files(tmp_path):
    folder = tmp_path / "saved"
    first = LabelStore(folder, LABELS, max_bytes=50_000)
    for number in range(3):  # each takes 16 KiB
        first.save(frame(number), 0)
    for album in (first, LabelStore(folder, LABELS, max_bytes=50_000)):
        with pytest.raises(EdgerecError, match=r"size limit of 0 MB: .*--web-save-max"):
            album.save(frame(9), 1)
    assert len(list(folder.rglob("*.png"))) == 3
    next(folder.rglob("*.png")).unlink()
    first.save(frame(4), 1)


def test_page_reports_that_the_quota_is_used_up(tmp_path):
    with WebSink("127.0.0.1", 0, LABELS, save_dir=tmp_path / "saved", save_max_bytes=4096) as sink:
        port = urlsplit(sink.url).port
        statuses = []
        for index in range(2):
            sink.write(result("stop", index))
            pending = json.loads(send_request(port, "/hold", {"source": 0, "frame": index})[1])
            statuses.append(send_request(port, "/save", {"hold": pending["hold"], "index": 0}))
    assert [status for status, _ in statuses] == [200, 507]
    assert b"size limit" in statuses[1][1]
    assert len(list((tmp_path / "saved").rglob("*.png"))) == 1


def test_command_line_sets_the_quota(bundle, tmp_path, edgerec):
    options = ["--source", "synthetic:8x8@30", "--headless", "--max-frames", 1, "--web", "127.0.0.1:0"]
    result = edgerec("camera", bundle, *options, "--web-save", tmp_path / "saved", "--web-save-max", "much")
    assert result.returncode == 2
    assert "'much'" in result.stderr
    result = edgerec("camera", bundle, *options, "--web-save", tmp_path / "saved", "--web-save-max", "10MB")
    assert result.returncode == 0, result.stderr


def test_service_has_a_memory_limit():
    assert "\nMemoryMax=75%\n" in install_files(Target.load("rpi"))["edgerec.service"].decode()
