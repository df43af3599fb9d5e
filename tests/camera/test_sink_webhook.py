"""Tests of the webhook with a real HTTP server that responds with errors, slowly or not at all."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import socket
import threading
import time

import pytest

from edgerec import CameraConfig, run_camera
from edgerec.camera.config import WebhookConfig
from edgerec.camera.sinks.webhook import MAX_QUEUED, Webhook, WebhookAddress
from edgerec.errors import EdgerecError
from tests.network import free_port, result, state_change, wait_for


class Server:
    """Records each request, and responds with the next status of a list. The last status is repeated."""

    def __init__(self, *statuses):
        self.requests, self.hold = [], threading.Event()
        left, outer = list(statuses), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers), body))
                status = left.pop(0) if len(left) > 1 else left[0]
                if status == "slow":
                    outer.hold.wait(20)
                elif status == "hang up":
                    self.connection.sendall(b"HTTP/1.1 20")
                elif status == "drip":
                    while not outer.hold.wait(0.05):
                        self.connection.sendall(b"H")
                elif status == "nonsense":
                    self.connection.sendall(b"\x00\xff nonsense\r\n\r\n")
                else:
                    self.send_response(status)
                    self.send_header("Location", "file:///etc/passwd")
                    self.end_headers()

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = False

            def handle_error(self, *_):
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/secret-path?key=hush"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self):
        self.hold.set()
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(*statuses):
        servers.append(Server(*statuses))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def webhook_to(url, **options):
    return Webhook(WebhookAddress.parse(url), **{"first_wait_s": 0.01, "timeout_s": 0.3, **options})


def wait_until_closed(sink):
    start = time.monotonic()
    sink.close()
    assert time.monotonic() - start < 3
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "edgerec-webhook"])
    return sink.sent, sink.dropped


def test_new_decisions_are_posted_and_signed(serve):
    server = serve(200)
    sink = webhook_to(server.url, secret="key", timeout_s=5)
    since = time.monotonic()
    for index in range(5):
        sink.write(result("stop", index, since_s=since))
        sink.state(state_change("live"))
    sink.write(result("gö", 5))
    assert wait_until_closed(sink) == (2, 0)
    events = [json.loads(body) for _, _, body in server.requests]
    assert [event["label"] for event in events] == ["stop", "gö"]
    assert [event["frame"] for event in events] == [0, 5]
    path, headers, body = server.requests[1]
    assert path == "/hook/secret-path?key=hush"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Edgerec-Signature"] == "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("reference", ["env:WEBHOOK_KEY", "@{path}", "key"])
def test_secret_is_read_from_a_variable_or_a_private_file(serve, bundle, video, tmp_path, monkeypatch, reference):
    server, path = serve(200), tmp_path / "key"
    path.write_text("key\n")
    path.chmod(0o600)
    monkeypatch.setenv("WEBHOOK_KEY", "key")
    webhook = WebhookConfig(server.url, reference.format(path=path))
    report = run_camera(CameraConfig(bundle=bundle, sources=str(video), output="none", webhook=webhook, max_frames=1))
    assert report.exit_code == 0
    ((_, headers, body),) = server.requests
    assert headers["X-Edgerec-Signature"] == "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()
    path.chmod(0o644)
    if reference.startswith("@"):
        with pytest.raises(EdgerecError, match="other users can access the file"):
            run_camera(CameraConfig(bundle=bundle, sources=str(video), output="none", webhook=webhook))


def test_every_result_is_posted_if_requested(serve):
    server = serve(204)
    sink = webhook_to(server.url, every_result=True, timeout_s=5)
    since = time.monotonic()
    for index in range(20):
        sink.write(result("stop", index, since_s=since))
    assert wait_until_closed(sink) == (20, 0)
    assert [json.loads(body)["frame"] for _, _, body in server.requests] == list(range(20))
    assert "X-Edgerec-Signature" not in server.requests[0][1]


def test_temporary_errors_are_tried_again(serve):
    server = serve(500, "hang up", 429, 200)
    sink = webhook_to(server.url, timeout_s=5)
    sink.write(result())
    wait_for(lambda: sink.sent == 1)
    assert wait_until_closed(sink) == (1, 0)
    assert len({headers["X-Edgerec-Delivery"] for _, headers, _ in server.requests}) == 1


@pytest.mark.parametrize(
    ("status", "requests", "expected"),
    [
        (500, 4, "responded with status 500 Internal Server Error"),
        (404, 1, "responded with status 404 Not Found"),
        (302, 1, "redirect (302), which is not followed"),
        ("slow", 4, "did not respond"),
        ("drip", 4, "did not respond"),
        ("hang up", 4, "did not respond"),
        ("nonsense", 4, "did not respond"),
    ],
)
def test_failed_requests_are_counted_and_logged_once(serve, caplog, status, requests, expected):
    server = serve(status)
    sink = webhook_to(server.url)
    sink.write(result("one"))
    wait_for(lambda: sink.dropped == 1)
    sink.write(result("two"))
    wait_for(lambda: sink.dropped == 2)
    assert len(server.requests) == 2 * requests
    (record,) = caplog.records
    assert expected in record.getMessage()
    assert record.exc_info is None
    assert "secret-path" not in caplog.text
    assert "hush" not in caplog.text
    assert wait_until_closed(sink) == (0, 2)


def test_refused_connection_is_counted_without_logging_the_password(caplog):
    sink = webhook_to(f"http://user:pass@127.0.0.1:{free_port()}/")
    sink.write(result())
    wait_for(lambda: "Connection refused" in caplog.text)  # the request is counted before the message is logged
    assert "pass" not in caplog.text
    assert wait_until_closed(sink) == (0, 1)


def test_slow_server_does_not_block_the_sink(serve):
    server = serve("slow")
    sink = webhook_to(server.url, timeout_s=60)
    start = time.monotonic()
    for number in range(MAX_QUEUED + 51):
        sink.write(result(f"d{number}"))
    assert time.monotonic() - start < 5
    wait_for(lambda: server.requests)
    assert sink.dropped >= 50
    sent, dropped = wait_until_closed(sink)
    assert (sent, dropped) == (0, MAX_QUEUED + 51)


def test_every_decision_of_a_file_is_posted(serve):
    server = serve(200)
    sink = webhook_to(server.url, live=False)
    for number in range(MAX_QUEUED + 100):
        sink.write(result(f"d{number}"))
    assert wait_until_closed(sink) == (MAX_QUEUED + 100, 0)


def test_closing_after_a_file_ends_at_the_first_request_that_fails(serve):
    server = serve("slow")
    sink = webhook_to(server.url, live=False, tries=1)
    for number in range(MAX_QUEUED):
        sink.write(result(f"d{number}"))
    assert wait_until_closed(sink) == (0, MAX_QUEUED)
    assert len(server.requests) < MAX_QUEUED


def test_exception_during_a_request_does_not_stop_later_requests(serve, monkeypatch):
    server = serve(200)
    getaddrinfo, failures = socket.getaddrinfo, [RuntimeError("can't start new thread")]

    def failing_once(*arguments, **options):
        if failures:
            raise failures.pop()
        return getaddrinfo(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", failing_once)
    sink = webhook_to(server.url)
    for number in range(3):
        sink.write(result(f"d{number}"))
    wait_for(lambda: sink.sent == 2)
    assert wait_until_closed(sink) == (2, 1)


def test_server_that_never_responds_does_not_block_closing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = webhook_to(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=60)
        sink.write(result())
        time.sleep(0.1)
        assert wait_until_closed(sink) == (0, 1)


def test_user_and_password_are_sent_as_basic_authentication(serve):
    server = serve(200)
    sink = webhook_to(server.url.replace("://", "://me:p%40ss@"), timeout_s=5)
    sink.write(result())
    assert wait_until_closed(sink) == (1, 0)
    assert server.requests[0][1]["Authorization"] == "Basic bWU6cEBzcw=="
    assert "me" not in repr(WebhookAddress.parse("http://me:p@host/x")).replace("timeout", "")


@pytest.mark.parametrize(
    "url",
    [
        "file:///secret",
        "ftp://h/secret",
        "http://",
        "secret",
        "http://h:70000/",
        "http://h:0/",
        "http://h/a\r\nX: secret",
        "http://h/a b",
    ],
)
def test_invalid_addresses_are_refused(url):
    with pytest.raises(EdgerecError, match="the webhook's address") as excinfo:
        WebhookAddress.parse(url)
    assert "secret" not in str(excinfo.value)
