"""HTTP requests with a deadline for each phase, so that a silent or very slow server cannot block the camera.

``urllib.request`` is not used, because its timeout applies to each read, so that a server that sends one byte at a time
could block the camera, and because a read cannot be interrupted from another thread.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from edgerec.errors import AddressError, SourceError
from edgerec.utils.url_redaction import Url

# Timeouts in seconds for connecting and for receiving the headers of the response.
CONNECT_S = 4.0
RESPONSE_S = 6.0
MAX_REDIRECTS = 5
_CHUNK = 1 << 16


class HttpStream:
    """Reads the body of a GET response as a stream.

    Attributes:
        content_type: the response's content type in lowercase, without parameters.
        length: the response's Content-Length in bytes, or None if the server does not send it.
        boundary: a multipart response's boundary without the leading dashes, or an empty string.
        deadline_s: monotonic time after which :meth:`read` raises TimeoutError if no data has arrived.
    """

    def __init__(self, url: Url) -> None:
        """Send the request, following redirects, and read the response's headers.

        User name and password are sent only to the server (scheme, host and port) of ``url``, and not to another server
        after a redirect.

        Raises:
            SourceError: the server cannot be reached, does not respond in time, or responds with a status other than
                200.
        """
        self._name, self.deadline_s = str(url), 0.0
        self._socket: socket.socket | None = None
        try:
            self._response = self._open(url)
        except SourceError:
            self.close()
            raise
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise SourceError(
                f"{self._name} has a certificate that is not trusted ({error.verify_message}): "
                "set SSL_CERT_FILE to the path of the camera's certificate"
            ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.close()
            raise SourceError(
                f"{self._name} cannot be opened ({failure(error)}): check the address and that the stream is running"
            ) from None
        headers = self._response.headers
        self.content_type = headers.get_content_type() if "Content-Type" in headers else ""
        self.length = self._response.length
        boundary = headers.get_param("boundary", "")
        self.boundary = (boundary if isinstance(boundary, str) else "").lstrip("-")

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> bytes:
        """Return the body's next bytes, or an empty byte string at the end.

        Raises:
            TimeoutError: no data arrived until ``deadline_s``.
            OSError: the connection was lost.
        """
        try:
            return self._response.read1(_CHUNK)
        except (http.client.HTTPException, ValueError) as error:  # The response is invalid, or the socket is closed.
            raise OSError(failure(error)) from None

    def waiting(self) -> bool:
        """Return True if received bytes can be read without blocking."""
        if self._socket is None:
            return False
        return (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0) or _readable(self._socket)

    def interrupt(self) -> None:
        """Interrupt a blocking read. May be called from another thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # The server may already have closed the connection.
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()

    def _open(self, url: Url) -> http.client.HTTPResponse:
        current_url, credentials, has_account = url, "", bool(url.user or url.password)
        for _ in range(MAX_REDIRECTS):
            response = self._get(current_url, credentials)
            location = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                try:
                    current_url, credentials = current_url.redirected(location, "http", "https"), ""
                except AddressError as error:
                    raise SourceError(
                        f"{self._name} redirects to an address that is not supported ({error}): use the final address"
                    ) from None
                self.close()
                continue
            if response.status == 401 and has_account and not credentials and current_url.origin == url.origin:
                credentials = authorization(url, current_url, response.headers.get_all("WWW-Authenticate") or [])
                self.close()
                if credentials:
                    continue
            break
        if response.status == 401:
            required = "a different user name and password" if has_account else "a user name and password"
            raise SourceError(
                f"{self._name} requires {required}: use {current_url.scheme}://USER:PASSWORD@{current_url.host}/…"
            )
        if response.status != 200:
            raise SourceError(
                f"{self._name} responded with status {status_text(response.status)}: check the path of the address"
            )
        return response

    def _get(self, current_url: Url, credentials: str) -> http.client.HTTPResponse:
        deadline_s = time.monotonic() + CONNECT_S
        tls = ssl.create_default_context() if current_url.scheme == "https" else None
        connected = self._socket = connect(current_url.host, current_url.port, deadline_s, tls)
        handshake(connected, deadline_s)
        lines = [
            f"GET {current_url.target} HTTP/1.1",
            f"Host: {current_url.netloc}",
            "User-Agent: edgerec",
            "Accept: */*",
            "Connection: close",
            *([f"Authorization: {credentials}"] if credentials else []),
        ]
        connected.sendall("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
        self.deadline_s = time.monotonic() + RESPONSE_S
        response = http.client.HTTPResponse(Reader(connected, lambda: self.deadline_s), method="GET")  # type: ignore[arg-type]
        response.begin()
        return response


def connect(host: str, port: int, deadline_s: float, tls: ssl.SSLContext | None = None) -> socket.socket:
    """Connect to a server.

    Args:
        host: the server's name or address. If the name has several IP addresses, they are tried in turn.
        port: server port.
        deadline_s: monotonic time in seconds at which the name lookup and all attempts time out.
        tls: TLS context, or None for an unencrypted connection. With TLS, the caller must then call
            :func:`handshake`, which can be interrupted by shutting down the returned socket.

    Raises:
        OSError: no address can be reached, or the deadline has passed.
    """
    addresses = _look_up(host, port, deadline_s)
    for left in range(len(addresses), 0, -1):
        family, kind, protocol, _, address = addresses[-left]
        connected: socket.socket | None = None
        try:
            connected = socket.socket(family, kind, protocol)  # socket() raises OSError for an unsupported family.
            # Split the remaining time equally among the addresses so that all of them can be tried.
            connected.settimeout(remaining_s(deadline_s) / left)
            connected.connect(address)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is None:
                return connected
            return tls.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
        except BaseException as error:
            if connected is not None:
                connected.close()
            if left == 1 or not isinstance(error, OSError):
                raise
    raise OSError("the host name has no IP address")


def handshake(connected: socket.socket, deadline_s: float) -> None:
    """Perform the TLS handshake if the socket uses TLS.

    Raises:
        OSError: the handshake failed, or the deadline has passed.
    """
    if isinstance(connected, ssl.SSLSocket):
        connected.settimeout(remaining_s(deadline_s))
        connected.do_handshake()


def remaining_s(deadline_s: float) -> float:
    """Return the number of seconds until a deadline. Raise TimeoutError if the deadline has passed."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no response in time")
    return left_s


def _look_up(host: str, port: int, deadline_s: float) -> list[Any]:
    """Look up a host's addresses in a thread, because ``getaddrinfo`` has no timeout."""
    result: Future[list[Any]] = Future()

    def look_up() -> None:
        try:
            result.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=look_up, name="edgerec-lookup", daemon=True).start()
    try:
        return result.result(remaining_s(deadline_s))
    except TimeoutError:
        raise TimeoutError("the name lookup timed out") from None


def status_text(status: int) -> str:
    """Return a status code with its standard reason phrase, ignoring the server's untrusted phrase."""
    return f"{status} {http.client.responses.get(status, '')}".rstrip()


def failure(error: Exception) -> str:
    """Return the reason why a request failed. Text from the server is omitted because it may contain secrets."""
    if isinstance(error, http.client.HTTPException) or not isinstance(error, OSError):
        return f"the response is not valid HTTP: {type(error).__name__}"
    return error.strerror or str(error) or type(error).__name__


class Reader(io.RawIOBase):
    """A socket reader for ``http.client``. Reads raise TimeoutError after the monotonic time ``deadline_s()``."""

    def __init__(self, connected: socket.socket, deadline_s: Callable[[], float]) -> None:
        self._connected, self._deadline_s = connected, deadline_s

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(self, _CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connected.settimeout(remaining_s(self._deadline_s()))
        return self._connected.recv_into(buffer)


def authorization(
    credentials_url: Url, current_url: Url, challenges: list[str], method: str = "GET", uri: str = ""
) -> str:
    """Return the Authorization header's value, or an empty string if the server's challenges are not supported.

    Digest authentication is preferred to Basic authentication.

    Args:
        credentials_url: URL with user name and password.
        current_url: the request's URL.
        challenges: the response's WWW-Authenticate headers.
        method: the request's method.
        uri: the request's URI. An empty string means the path and query of ``current_url``.
    """
    from urllib.request import (
        AbstractDigestAuthHandler,
        HTTPPasswordMgrWithDefaultRealm,
        Request,
        parse_http_list,
        parse_keqv_list,
    )

    user, password = credentials_url.user, credentials_url.password
    for challenge in challenges:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "digest":
            passwords = HTTPPasswordMgrWithDefaultRealm()
            address = f"{current_url.scheme}://{current_url.netloc}"
            passwords.add_password(None, address, user, password)
            request = Request(address + current_url.target, method=method)
            request.selector = uri or current_url.target
            # Ignore unsupported algorithms, e.g. SHA-256, because the camera may also offer a supported one.
            with contextlib.suppress(IndexError, ValueError, OSError):
                challenge_fields = parse_keqv_list(parse_http_list(rest))
                if credentials := AbstractDigestAuthHandler(passwords).get_authorization(request, challenge_fields):
                    return f"Digest {credentials}"
    if any(challenge.lower().startswith("basic") for challenge in challenges):
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return ""


def _readable(connected: socket.socket) -> bool:
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(connected, selectors.EVENT_READ)
            return bool(selector.select(0))
    except (OSError, ValueError):
        return False
