"""Passwords and tokens stay secret: in names, logs, errors, redirects, the process list and files."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import pytest

from edgerec import Camera
from edgerec.camera.sinks.mqtt_client import Broker
from edgerec.camera.sinks.webhook import WebhookAddress
from edgerec.camera.sources import find_source
from edgerec.errors import EdgerecError, SourceError
from edgerec.utils.atomic import replacing_folder, write_file
from edgerec.utils.url_redaction import redacted
from tests.conftest import error_line
from tests.servers import HEAD, MjpegServer, free_port, image_part, jpeg

SECRETS = ("SECRET", "S3CR3T", "471108151")


def leaked(text: str) -> bool:
    return any(secret in text for secret in SECRETS)


# Names of sources.


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://user:SECRET@10.0.0.5:554/a?channel=2", "rtsp://10.0.0.5:554/a?channel=2"),
        ("http://cam/snap.cgi?loginuse=admin&loginpas=SECRET&channel=1", "http://cam/snap.cgi?channel=1&***"),
        ("http://cam/x?usr=admin&pwd=SECRET", "http://cam/x?***"),
        ("http://cam/x?pin=471108151", "http://cam/x?***"),
        ("http://cam/x?SECRET", "http://cam/x?***"),
        ("http://cam/x?S3CR3T==", "http://cam/x?***"),
        ("http://cam/x?channel=1;p%61ss=SECRET", "http://cam/x?channel=1&***"),
        ("http://cam/x?width=SECRET%20", "http://cam/x?***"),
        ("http://cam/x#SECRET", "http://cam/x"),
        ("rtsp://cam/user=admin_password=SECRET_channel=1_stream=0.sdp", "rtsp://cam/user=***"),
        ("RTSP://user:SECRET@cam/x", "rtsp://cam/x"),
        ("http://[::1]:8080/x?token=SECRET", "http://[::1]:8080/x?***"),
        ("synthetic:64x48@20", "synthetic:64x48@20"),
    ],
)
def test_name_of_a_source_has_no_secret(address, name):
    source = find_source(address)
    assert source.name.replace("RTSP", "rtsp") == name
    assert not leaked(f"{source.name} {source!r}")


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://admin:SECRET/x@cam/stream",
        "rtsp://admin:SECRET#x@cam/stream",
        "http://admin:SECRET?x@cam/stream",
        "http://admin:12/SECRET@cam/stream",
        "http://admin:a@SECRET/x@cam/",
        "http://cam/x?password=a@SECRET",
        "http://admin:SECRET",
        "http://cam:SECRET/x",
        "http://admin:SECRET@cam:99999/",
        "http://admin:SECRET@/x",
        "http://admin:SECRET@" + "h" * 70 + "/",
        "http://admin:SECRET@[::1/x",
        "http://cam/x?pwd=SECRET y",
        "htp://admin:SECRET@cam/x",
        "htp://cam/x?pwd=SECRET",
        "http:/admin:SECRET@cam/x",
        "admin:SECRET@cam/x",
        "cam/x?pwd=SECRET",
        "env:SECRET@x",
    ],
)
def test_invalid_address_is_refused_without_showing_its_password(address):
    for parse in (find_source, lambda text: Broker.parse(text.replace("http", "mqtt"), {}), WebhookAddress.parse):
        with pytest.raises(EdgerecError) as excinfo:
            parse(address)
        assert not leaked(str(excinfo.value))


def test_refusal_says_how_to_write_a_password_with_special_characters():
    with pytest.raises(SourceError, match="write / as %2F, \\? as %3F, # as %23"):
        find_source("rtsp://admin:a/b@cam/stream")


def test_addresses_that_differ_only_in_secrets_are_two_sources(bundle):
    addresses = ["http://127.0.0.1/x?id_of_camera=1&pwd=SECRET", "http://127.0.0.1/x?id_of_camera=2&pwd=SECRET"]
    names = Camera.open(bundle, addresses).sources
    assert names == ("http://127.0.0.1/x?***", "http://127.0.0.1/x?*** #2")
    with pytest.raises(SourceError, match="specified twice") as excinfo:
        Camera.open(bundle, addresses[:1] * 2)
    assert not leaked(str(excinfo.value))


@pytest.mark.parametrize(
    "response",
    [
        b"{request}",
        b"HTTP/1.1 500 {request}\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: multipart/x-mixed-replace\r\n\r\n{request}",
        b"HTTP/1.1 302 Found\r\nLocation: http://a:b@[x?{request}\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: ftp://x?pwd=SECRET\r\n\r\n",
    ],
)
def test_error_does_not_repeat_a_response_that_echoes_the_request(response):
    def script(peer):
        peer.send(response.replace(b"{request}", peer.request.splitlines()[0]))

    with MjpegServer(script) as server, pytest.raises(SourceError) as excinfo:
        for _ in find_source(f"{server.url}?pwd=SECRET").open().images():
            pass
    assert not leaked(str(excinfo.value))
    assert "127.0.0.1" in str(excinfo.value)


# Redirects.


@contextmanager
def challenging():
    """A server that asks for a password, and its list of requests."""
    requests = []

    def script(peer):
        requests.append(peer.request)
        peer.send(b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="c"\r\nContent-Length: 0\r\n\r\n')

    with MjpegServer(script) as server:
        yield server, requests


def test_password_without_a_user_is_sent_to_a_web_camera():
    with challenging() as (server, requests), pytest.raises(SourceError, match="a different user name and password"):
        find_source(server.url.replace("http://", "http://:SECRET@")).open()
    assert [b"Authorization: Basic OlNFQ1JFVA==" in request for request in requests] == [False, True]


def test_password_does_not_follow_a_redirect_to_another_port():
    with challenging() as (other_server, requests):

        def script(peer):
            peer.send(f"HTTP/1.1 302 Found\r\nLocation: {other_server.url}\r\n\r\n".encode())

        with MjpegServer(script) as server, pytest.raises(SourceError, match="user name and password"):
            find_source(server.url.replace("//", "//me:SECRET@")).open()
    assert requests
    assert not any(b"Authorization" in request for request in requests)


def test_password_does_not_follow_a_redirect_from_https_to_http(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with challenging() as (other_server, requests), socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with context.wrap_socket(connection, server_side=True) as encrypted:
                        encrypted.recv(4096)
                        encrypted.sendall(f"HTTP/1.1 302 Found\r\nLocation: {other_server.url}\r\n\r\n".encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(SourceError, match="user name and password"):
            find_source(f"https://me:SECRET@127.0.0.1:{listener.getsockname()[1]}/").open()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert requests
    assert not any(b"Authorization" in request for request in requests)


@contextmanager
def rtsp_server(respond):
    """A server that responds to each request with ``respond(request)``; yield its port and the list of requests."""
    requests, connections = [], []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with suppress(OSError), connection:
            while request := connection.recv(4096):
                requests.append(request)
                number = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"cseq"))
                text = "200 OK\r\nPublic: DESCRIBE" if request.startswith(b"OPTIONS") else respond(request)
                connection.sendall(f"RTSP/1.0 {text}\r\n".encode() + number + b"\r\n\r\n")

    def accept():
        with suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                threading.Thread(target=serve, args=(connections[-1],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], requests
    finally:
        for open_socket in (listener, *connections):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()


CHALLENGES = ['Basic realm="c"', 'Digest realm="c", nonce="abc", qop="auth", algorithm=MD5']


@pytest.mark.parametrize("challenge", ["", *CHALLENGES])
def test_password_does_not_follow_a_redirect_of_an_rtsp_server(challenge):
    """The camera redirects at once, or after it has checked the password."""

    def redirect(request):
        if challenge and b"Authorization" not in request:
            return f"401 Unauthorized\r\nWWW-Authenticate: {challenge}"
        return f"302 Found\r\nLocation: rtsp://127.0.0.1:{other_server}/y"

    with (
        rtsp_server(lambda request: f"401 Unauthorized\r\nWWW-Authenticate: {CHALLENGES[0]}") as (
            other_server,
            requests,
        ),
        rtsp_server(redirect) as (port, _),
        pytest.raises(SourceError, match="cannot be opened") as excinfo,
    ):
        find_source(f"rtsp://me:SECRET@127.0.0.1:{port}/x").open()
    assert requests
    assert not any(b"Authorization" in request for request in requests)
    assert not leaked(str(excinfo.value))


def test_redirect_on_the_same_rtsp_server_keeps_the_password():
    def respond(request):
        if b"/x" in request.split(b"\r\n")[0]:
            return f"302 Found\r\nLocation: rtsp://127.0.0.1:{port}/y"
        return f"401 Unauthorized\r\nWWW-Authenticate: {CHALLENGES[0]}"

    with rtsp_server(respond) as (port, requests), pytest.raises(SourceError, match="cannot be opened"):
        find_source(f"rtsp://me:SECRET@127.0.0.1:{port}/x").open()
    assert any(b"/y" in request and b"Authorization: Basic bWU6U0VDUkVU" in request for request in requests)


def test_endless_redirects_of_an_rtsp_server_are_refused():
    """FFmpeg would follow the next redirect with the password."""

    def respond(request):
        return f"302 Found\r\nLocation: rtsp://127.0.0.1:{port}/x"

    with rtsp_server(respond) as (port, _), pytest.raises(SourceError, match="redirects too often"):
        find_source(f"rtsp://me:SECRET@127.0.0.1:{port}/x").open()


def test_token_of_the_page_may_be_a_reference(bundle, edgerec):
    command = ["camera", bundle, "--source", "synthetic:64x64@0", "--max-frames", "1", "--json", "--web", "127.0.0.1:0"]
    result = edgerec(*command, "--web-token", "env:NOT_SET_ANYWHERE")
    assert "NOT_SET_ANYWHERE" in error_line(result)


DIGEST = 'Digest realm="c", nonce="abc"'


@pytest.mark.parametrize(
    ("challenges", "account", "expected"),
    [
        ([f"{DIGEST}, algorithm=SHA-256-sess", f"{DIGEST}, algorithm=MD5"], "me:SECRET", b'algorithm="MD5"'),
        ([DIGEST, 'Basic realm="c"'], "me:SÉCRET", b"Basic "),
        (['Digest realm="Caméra", nonce="a"', 'Basic realm="Caméra"'], "me:SECRET", b"Basic "),
        (['Basic realm="c"'], ":SECRET", b"Basic "),
    ],
)
def test_password_is_sent_for_the_first_challenge_that_is_supported(challenges, account, expected):
    """Without a supported challenge, the redirect behind the password would be left to FFmpeg."""

    def respond(request):
        if b"Authorization" not in request:
            return "401 Unauthorized\r\n" + "\r\n".join(f"WWW-Authenticate: {challenge}" for challenge in challenges)
        return "404 Not Found"

    with rtsp_server(respond) as (port, requests), pytest.raises(SourceError, match="cannot be opened"):
        find_source(f"rtsp://{account}@127.0.0.1:{port}/x").open()
    own = [request for request in requests if b"User-Agent: edgerec\r\n" in request]
    assert [expected in request for request in own] == [False, True]


@pytest.mark.parametrize("content", [b"HTTP/1.1 302 Found", b"RTSP/1.0 302 Found\r\nLocation: ftp://SECRET", b"SECRET"])
def test_invalid_rtsp_response_is_reported_in_one_line(content):
    with (
        MjpegServer(lambda peer: peer.send(content + b"\r\n\r\n")) as server,
        pytest.raises(SourceError, match=f"rtsp://127.0.0.1:{server.port}/camera.mjpg") as excinfo,
    ):
        find_source(server.url.replace("http://", "rtsp://me:SECRET@")).open()
    assert not leaked(str(excinfo.value))


# The environment, files and the process list.


def secret_file(folder, content, mode=0o600):
    path = folder / f"secret-{mode:o}"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_addresses_come_from_variables_and_private_files(tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR", "rtsp://me:SECRET@10.0.0.5/a\n")
    path = secret_file(tmp_path, "http://me:SECRET@10.0.0.6/b\n")
    assert find_source("env:DOOR").name == "rtsp://10.0.0.5/a"
    assert find_source(f"@{path}").name == "http://10.0.0.6/b"
    assert WebhookAddress.parse(f"@{path}") == WebhookAddress.parse("http://me:SECRET@10.0.0.6/b")
    environment = {"BROKER": "mqtt://me:SECRET@10.0.0.7/home", "EDGEREC_MQTT_PASSWORD_FILE": str(path)}
    assert Broker.parse("env:BROKER", environment) == Broker.parse(environment["BROKER"], {})
    assert Broker.parse("mqtt://me@10.0.0.7", environment).password == "http://me:SECRET@10.0.0.6/b"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660])
def test_secret_file_that_others_can_read_or_change_is_refused(tmp_path, mode):
    path = secret_file(tmp_path, "http://me:SECRET@10.0.0.6/b", mode)
    for parse in (find_source, WebhookAddress.parse, Broker.parse):
        with pytest.raises(EdgerecError, match=rf"mode {mode:04o}\): run chmod 600 {path}"):
            parse(f"@{path}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "one line of text"), ("a\nb", "several lines"), ("x" * 5000, "one line of text"), (None, "No such file")],
)
def test_unusable_secret_file_is_refused(tmp_path, content, reason):
    path = tmp_path / "none" if content is None else secret_file(tmp_path, content)
    with pytest.raises(SourceError, match=reason):
        find_source(f"@{path}")


def test_secret_file_that_is_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SourceError, match="not a file"):
        find_source(f"@{tmp_path / 'pipe'}")


def test_content_of_a_variable_that_is_not_an_address_is_not_shown(monkeypatch):
    monkeypatch.setenv("DOOR", "SECRET/stream")
    with pytest.raises(SourceError, match="the source 'env:DOOR' does not exist") as excinfo:
        find_source("env:DOOR")
    assert not leaked(str(excinfo.value))


def test_error_names_an_environment_variable_that_is_not_set():
    with pytest.raises(SourceError, match="environment variable EDGEREC_NO_SUCH is not set"):
        find_source("env:EDGEREC_NO_SUCH")


def test_camera_with_secrets_everywhere_shows_none(bundle, tmp_path, edgerec):
    """A camera whose source, broker, webhook and page have secrets does its work and prints none of them."""
    authorized, posted = [], []

    def camera(peer):
        authorized.append(b"Authorization: Basic" in peer.request)
        if not authorized[-1]:
            peer.send(b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="c"\r\nContent-Length: 0\r\n\r\n')
            return
        peer.send(HEAD)
        for number in range(40):
            peer.send(image_part(jpeg(number)))
            peer.wait(0.02)

    def receiver(peer):
        posted.append(peer.request)
        peer.send(b"HTTP/1.1 500 \x1b]0;SECRET\x07\r\nContent-Length: 0\r\n\r\n")

    with MjpegServer(camera) as source, MjpegServer(receiver) as hook:
        url = source.url.replace("//", "//me:SECRET@") + "?pwd=S3CR3T"
        webhook = secret_file(tmp_path, hook.url.replace("//", "//me:SECRET@") + "/S3CR3T")
        environment = os.environ | {
            "CAMERA": url,
            "BROKER": f"mqtt://me:SECRET@127.0.0.1:{free_port()}/home",
            "EDGEREC_WEB_TOKEN": "SECRET-token",
            "EDGEREC_LOG": "DEBUG",
        }
        options = ["--mqtt", "env:BROKER", "--queue-dir", tmp_path / "queue", "--webhook", f"@{webhook}"]
        options += ["--web", "127.0.0.1:0", "--max-frames", 5, "--json"]
        result = edgerec("camera", bundle, "--source", "env:CAMERA", *options, env=environment)
    assert result.returncode == 1, result.stderr  # because the webhook has lost results
    assert authorized[1]
    assert posted
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {event["source"] for event in events if event["event"] == "state"} == {f"{source.url}?***"}
    assert not leaked(result.stdout + result.stderr)
    assert "\x1b" not in result.stderr


def test_camera_with_secrets_in_a_private_configuration_file_shows_none(bundle, tmp_path, edgerec):
    path = secret_file(tmp_path, "")
    path.write_text(
        f'bundle = "{bundle}"\nsources = ["synthetic:8x8@30"]\noutput = "json"\nmax_frames = 3\n'
        f'[webhook]\nurl = "http://me:SECRET@127.0.0.1:{free_port()}/S3CR3T"\nsecret = "SECRET"\n'
        f'[mqtt]\nurl = "mqtt://me:SECRET@127.0.0.1:{free_port()}/home"\nqueue_dir = "queue"\n'
        f'[web]\naddress = "127.0.0.1:0"\ntoken = "SECRET-token"\n'
    )
    environment = os.environ | {"EDGEREC_LOG": "DEBUG"}
    result = edgerec("camera", "--config", path, env=environment)
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()].count("result") == 3
    assert "process list" not in result.stderr
    assert not leaked(result.stdout + result.stderr)
    path.chmod(0o644)
    refusal = edgerec("camera", "--config", path, env=environment)
    assert refusal.returncode == 1
    assert "contains a password or token in mqtt.url, but other users" in refusal.stderr
    assert not leaked(refusal.stderr)


def test_password_on_the_command_line_causes_a_warning(bundle, edgerec):
    options = ["--headless", "--max-frames", 1]
    address = f"http://me:SECRET@127.0.0.1:{free_port()}/"
    result = edgerec("camera", bundle, "--source", "synthetic:8x8@30", "--webhook", address, *options)
    assert "can be read by all users of this machine in the process list" in result.stderr
    assert not leaked(result.stderr)
    result = edgerec("camera", bundle, "--source", "synthetic:8x8@30", *options)
    assert "process list" not in result.stderr
    page = ["--web", "127.0.0.1:0", "--web-token"]
    for token, warned in {"env:TOKEN": False, "SECRET-SECRET": True}.items():
        environment = os.environ | {"TOKEN": "SECRET-SECRET"}
        result = edgerec("camera", bundle, "--source", "synthetic:8x8@30", *options, *page, token, env=environment)
        assert result.returncode == 0, result.stderr
        assert ("process list" in result.stderr) == warned


# The token of the web page.

web = pytest.importorskip("edgerec.camera.sinks.web", reason='no Starlette (pip install "edgerec[web]")')


def send_request(sink, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(sink.url).port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse()
    finally:
        connection.close()


def test_token_is_never_logged(caplog):
    caplog.set_level("DEBUG", "edgerec")
    with web.WebSink("127.0.0.1", 0, token="SECRET-token") as chosen, web.WebSink("0.0.0.0", 0) as generated:
        assert chosen.address in caplog.text
        assert chosen.token not in caplog.text
        assert generated.token not in caplog.text


def test_generated_token_is_printed_but_never_written_to_the_journal(bundle, tmp_path):
    command = [sys.executable, "-m", "edgerec", "camera", bundle, "--source", "synthetic:8x8@30", "--headless"]
    command += ["--max-frames", "1", "--web", "0.0.0.0:0"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGEREC_WEB")}
    for journal in (False, True):
        with (tmp_path / f"stderr-{journal}").open("w+") as stderr:
            status = os.fstat(stderr.fileno())
            stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"} if journal else {}
            result = subprocess.run(
                list(map(str, command)), stderr=stderr, stdout=subprocess.DEVNULL, env=environment | stream, timeout=120
            )
            text = (tmp_path / f"stderr-{journal}").read_text()
        assert result.returncode == journal, text
        assert ("?token=" in text) is not journal
        assert ("set EDGEREC_WEB_TOKEN" in text) is journal


TOKEN_FORMS = {
    "cookie": lambda sink, guess: send_request(sink, Cookie=f"edgerec_{urlsplit(sink.url).port}={guess}"),
    "header": lambda sink, guess: send_request(sink, Authorization=f"Bearer {guess}"),
    "basic": lambda sink, guess: send_request(sink, Authorization=f"Basic {guess}"),
    "query": lambda sink, guess: send_request(sink, f"/?token={guess}"),
    "form": lambda sink, guess: send_request(sink, f"/?token={guess}", Accept="text/html"),
    "image": lambda sink, guess: send_request(sink, f"/image/0?token={guess}"),
}


@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_every_form_of_a_wrong_token_counts_toward_the_lockout(form, monkeypatch):
    monkeypatch.setattr("edgerec.http.auth.WRONG_TOKEN_S", 0.0)
    with web.WebSink("127.0.0.1", 0, token="correct horse") as sink:
        statuses = [TOKEN_FORMS[form](sink, f"guess{number}").status for number in range(15)]
        assert statuses == [401] * 10 + [429] * 5
        locked_out = send_request(sink, "/?token=correct%20horse")
        assert locked_out.status == 429
        assert 0 < int(locked_out.headers["Retry-After"]) <= 60
        for send_token in TOKEN_FORMS.values():
            assert send_token(sink, "guess").status == 429
        assert send_request(sink).status == 401  # without a token, the page still asks for it


def test_several_guesses_in_one_request_all_count(monkeypatch):
    monkeypatch.setattr("edgerec.http.auth.WRONG_TOKEN_S", 0.0)
    with web.WebSink("127.0.0.1", 0, token="correct horse") as sink:
        cookie = f"edgerec_{urlsplit(sink.url).port}"
        statuses = [
            send_request(
                sink, f"/?token=a{number}", Cookie=f"{cookie}=b{number}", Authorization=f"Bearer c{number}"
            ).status
            for number in range(5)
        ]
        assert statuses == [401] * 4 + [429]


def test_wrong_cookie_is_delayed(monkeypatch):
    delays = []

    async def sleep(seconds):
        delays.append(seconds)

    monkeypatch.setattr("edgerec.http.auth.asyncio", type("Module", (), {"sleep": staticmethod(sleep)}))
    with web.WebSink("127.0.0.1", 0, token="correct horse") as sink:
        response = TOKEN_FORMS["cookie"](sink, "guess")
        assert (response.status, delays) == (401, [0.5])
        # The browser forgets the old cookie, so that a page that is still open does not lock its own address out.
        assert "Max-Age=0" in response.headers["Set-Cookie"]


def test_other_addresses_are_not_locked_out(monkeypatch):
    monkeypatch.setattr("edgerec.http.auth.WRONG_TOKEN_S", 0.0)
    with web.WebSink("127.0.0.1", 0, token="correct horse") as sink, ExitStack() as stack:
        for number in range(12):
            TOKEN_FORMS["query"](sink, f"guess{number}")
        port = urlsplit(sink.url).port
        other_client = http.client.HTTPConnection("127.0.0.1", port, timeout=10, source_address=("127.0.0.2", 0))
        stack.callback(other_client.close)
        other_client.request("GET", "/", headers={"Authorization": "Bearer correct horse"})
        assert other_client.getresponse().status == 200


# Modes of files.


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_files_and_folders_respect_the_umask(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "file", "text")
        with replacing_folder(tmp_path / "folder") as partial:
            (partial / "inside").write_text("text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder_mode


def test_replaced_file_keeps_its_mode(tmp_path):
    (tmp_path / "file").touch(0o600)
    write_file(tmp_path / "file", "text")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_frame_rate_of_a_synthetic_source_is_not_a_password():
    assert redacted("synthetic:640x480@30") == "synthetic:640x480@30"
    assert redacted("synthetic:SECRET@30") == "***"
