"""Tests that each attempt of the webhook ends within its time limit."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from edgerec.camera.sinks.webhook import Webhook, WebhookAddress
from tests.network import result, wait_for


def webhook_to(port, **options):
    return Webhook(WebhookAddress.parse(f"https://127.0.0.1:{port}/"), **{"timeout_s": 0.4, "tries": 1, **options})


def close(sink):
    sink.close()
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "edgerec-webhook"])


@pytest.fixture
def silent_port():
    """Run a server that accepts TCP connections and never responds; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def tls_server(tmp_path, monkeypatch):
    """Return a function that starts a TLS server with a trusted certificate, and returns its port."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    ending = threading.Event()

    def start(serve):
        def work():
            with contextlib.suppress(OSError), server:
                plain, _ = server.accept()
                ending.wait(0.3)  # the handshake takes a part of the time limit
                with context.wrap_socket(plain, server_side=True) as connection:
                    serve(connection, ending)

        server = socket.create_server(("127.0.0.1", 0))
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return server.getsockname()[1]

    threads = []
    yield start
    ending.set()
    for thread in threads:
        thread.join()


def send_slowly(connection, ending):
    """Send a response that never ends, one byte at a time."""
    while not ending.wait(0.05):
        connection.sendall(b"H")


def read_slowly(connection, ending):
    """Read about 2 MB of the request per second."""
    while not ending.wait(0.05):
        connection.recv(100_000)


def test_server_that_does_not_complete_the_tls_handshake_times_out(silent_port):
    sink = webhook_to(silent_port)
    sink.write(result())
    wait_for(lambda: sink.dropped == 1)
    close(sink)


def test_closing_interrupts_the_tls_handshake(silent_port):
    sink = webhook_to(silent_port, timeout_s=60)
    sink.write(result())
    close(sink)
    assert sink.dropped == 1


@pytest.mark.parametrize(("serve", "label"), [(send_slowly, "stop"), (read_slowly, "x" * 60_000_000)])
def test_time_limit_includes_a_slow_name_lookup(tls_server, monkeypatch, serve, label):
    getaddrinfo, wait = socket.getaddrinfo, threading.Event().wait

    def slow(*arguments, **options):
        wait(0.2)
        return getaddrinfo(*arguments, **options)

    sink = webhook_to(tls_server(serve))
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    sink.write(result(label))
    wait_for(lambda: sink.dropped == 1)
    close(sink)


def test_hanging_name_lookup_times_out(silent_port, monkeypatch, caplog):
    ending = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ending.wait() and [])
    sink = webhook_to(silent_port)
    sink.write(result())
    wait_for(lambda: "the name lookup timed out" in caplog.text)
    ending.set()
    close(sink)


def test_time_limit_is_divided_among_the_addresses_of_a_host(monkeypatch):
    """The first address never responds, but some of the time limit remains for the second address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Log nothing."""

    getaddrinfo = socket.getaddrinfo
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        stack.callback(server.shutdown)
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # further connections wait until these are accepted
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        full_address = getaddrinfo(*full.getsockname(), type=socket.SOCK_STREAM)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: full_address + getaddrinfo(*a, **k))
        address = WebhookAddress.parse(f"http://127.0.0.1:{server.server_port}/")
        sink = Webhook(address, timeout_s=1, tries=10, first_wait_s=0.01)
        sink.write(result())
        wait_for(lambda: sink.sent == 1)
        close(sink)
