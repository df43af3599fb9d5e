"""Send decisions to a web server as HTTP POST requests.

``http.client`` is used instead of urllib3 or httpx because their timeouts apply to each operation and not to the whole
request, and because devices should need as few packages as possible.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import logging
import socket
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from edgerec._version import __version__
from edgerec.camera.frame import Result
from edgerec.camera.sinks.events import DecisionChanges, decision_event
from edgerec.camera.source_state import StateChange
from edgerec.camera.sources.http import Reader, connect, failure, handshake, remaining_s, status_text
from edgerec.errors import AddressError, EdgerecError
from edgerec.utils.secret_references import read_secret
from edgerec.utils.text import to_json
from edgerec.utils.url_redaction import Url

log = logging.getLogger(__name__)

# Maximum number of queued requests. If the queue is full, the oldest request is dropped.
MAX_QUEUED = 256
# Maximum time in seconds for sending queued requests when the sink of a live camera is closed.
FLUSH_S = 1.0
_PART_BYTES = 16_384  # size of a TLS record
# HTTP status codes below 500 after which a request is retried.
_TEMPORARY_STATUSES = frozenset({408, 425, 429})


@dataclass(frozen=True)
class WebhookAddress:
    """A webhook's address. ``str()`` omits the user, password, path and query because they often contain secrets.

    Attributes:
        host, port: the server's host and port.
        tls: whether the server uses HTTPS.
        path: the address's path and query.
        authorization: value of the Authorization header, or an empty string if there are no credentials.
    """

    host: str
    port: int
    tls: bool
    path: str = field(repr=False)
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> WebhookAddress:
        """Parse the address of a webhook.

        The format is ``http[s]://[user:password@]host[:port]/path``. ``env:NAME`` and ``@FILE`` read the address from
        an environment variable or a file.

        Raises:
            EdgerecError: the address is not valid. The message does not contain the address.
        """
        try:
            parts = Url.parse(read_secret(url), "http", "https")
        except AddressError as error:
            raise EdgerecError(
                f"the webhook's address is invalid ({error}): use http[s]://[user:password@]host[:port]/path"
            ) from None
        if not parts.target.isascii():
            raise EdgerecError(
                "the webhook's address has characters that are not ASCII: percent-encode them, e.g. é as %C3%A9"
            )
        user = f"{parts.user}:{parts.password}"
        authorization = f"Basic {base64.b64encode(user.encode()).decode()}" if user != ":" else ""
        return cls(parts.host, parts.port, parts.scheme == "https", parts.target, authorization)


class Webhook:
    """Sends each new decision, or each result, as JSON in a separate thread.

    A request is retried, with increasing delays, if the server cannot be reached, does not respond in time, or
    responds with status 5xx, 408, 425 or 429. The header ``X-Edgerec-Delivery`` identifies the request and is the same
    in all attempts. If there is a secret, the header ``X-Edgerec-Signature: sha256=…`` contains the HMAC-SHA256 of the
    body in hexadecimal. Redirects are not followed.

    Attributes:
        sent: number of requests accepted by the server.
        dropped: number of requests that the server did not accept, or that were dropped because the queue was full.
    """

    closed = False
    name = "webhook"
    loss = ("request", "lost")
    uses_images = False

    def __init__(
        self,
        address: WebhookAddress,
        *,
        secret: str = "",
        every_result: bool = False,
        timeout_s: float = 5.0,
        tries: int = 4,
        first_wait_s: float = 0.5,
        live: bool = True,
    ) -> None:
        """Start the thread that sends requests.

        Args:
            address: the server's address and credentials.
            secret: key for the signature of each request. If empty, no signature is sent.
            every_result: send every result instead of only new decisions.
            timeout_s: total time limit for one attempt, in seconds.
            tries: maximum number of attempts for each request.
            first_wait_s: delay before the first retry, in seconds. Each further delay is twice as long.
            live: drop the oldest request if the server is too slow. Otherwise, e.g. for a video file, :meth:`write`
                waits, and :meth:`close` sends all requests unless one of them fails.
        """
        self.sent = self.dropped = 0
        self._address, self._secret, self._every = address, secret.encode(), every_result
        self._timeout_s, self._tries, self._first_wait_s = timeout_s, tries, first_wait_s
        self._live = live
        self._tls = ssl.create_default_context() if address.tls else None
        self._changes = DecisionChanges()
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._finishing = False
        self._stop = threading.Event()
        self._socket: socket.socket | None = None
        self._logged_s = -60.0
        self._thread = threading.Thread(target=self._work, name="edgerec-webhook", daemon=True)
        self._thread.start()

    def write(self, result: Result) -> None:
        """Queue the decision if it has changed, or queue every result if ``every_result`` is true."""
        new = self._changes.is_new(result)
        if not (self._every or new):
            return
        event = result.to_dict() if self._every else decision_event(result)
        with self._changed:
            if not self._live:
                self._changed.wait_for(lambda: len(self._queue) < MAX_QUEUED)
            if len(self._queue) >= MAX_QUEUED:
                self._queue.popleft()
                self._count_lost("is too slow")
            self._queue.append(to_json(event).encode())
            self._changed.notify_all()

    def state(self, change: StateChange) -> None:
        """Do nothing, because state changes are not sent."""

    def close(self) -> None:
        """Send the queued requests. If ``live`` is true, stop after one second and count the rest as dropped."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        self._thread.join(FLUSH_S if self._live else None)
        self._stop.set()
        self._abort()
        self._thread.join(FLUSH_S / 2)
        self.dropped += len(self._queue)

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._finishing)
                if not self._queue:
                    return
                body = self._queue.popleft()
                self._changed.notify_all()
            try:
                self._deliver(body)
            except Exception as error:  # The sending thread must stay alive for later requests.
                self._count_lost(f"failed ({error})")

    def _deliver(self, body: bytes) -> None:
        headers = self._headers(body)
        wait_s = self._first_wait_s
        for attempt in range(1, self._tries + 1):
            problem, is_temporary = self._post(body, headers)
            if not problem:
                self.sent += 1
                return
            if not is_temporary or attempt == self._tries or self._stop.wait(wait_s):
                break
            wait_s *= 2
        self._count_lost(problem)
        if self._finishing:
            self._stop.set()

    def _headers(self, body: bytes) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "User-Agent": f"edgerec/{__version__}",
            "Connection": "close",
            "X-Edgerec-Delivery": str(uuid.uuid4()),
        }
        if self._secret:
            headers["X-Edgerec-Signature"] = "sha256=" + hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        if self._address.authorization:
            headers["Authorization"] = self._address.authorization
        return headers

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[str, bool]:
        """Send the request once. Return the error message (empty on success) and whether retrying may help."""
        address, deadline_s = self._address, time.monotonic() + self._timeout_s
        connection = http.client.HTTPConnection(address.host, address.port)
        connection.default_port = 443 if address.tls else 80  # omitted in the Host header
        try:
            connected = connection.sock = self._socket = connect(address.host, address.port, deadline_s, self._tls)
            handshake(connected, deadline_s)
            connection.request("POST", address.path, _parts(body, connected, deadline_s), headers)
            response = http.client.HTTPResponse(Reader(connected, lambda: deadline_s), method="POST")  # type: ignore[arg-type]
            response.begin()
            status = response.status
        except ssl.SSLCertVerificationError as error:
            return f"has a certificate that is not trusted ({error.verify_message})", False
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"did not respond ({failure(error)})", True
        finally:
            self._socket = None
            with suppress(OSError):
                connection.close()
        if 200 <= status < 300:
            return "", False
        if 300 <= status < 400:
            return f"responded with a redirect ({status}), which is not followed: use the final address", False
        return f"responded with status {status_text(status)}", status >= 500 or status in _TEMPORARY_STATUSES

    def _abort(self) -> None:
        """Abort the current HTTP request from another thread."""
        if (connected := self._socket) is not None:
            with suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def _count_lost(self, reason: str) -> None:
        """Count a dropped request, and log dropped requests at most once per minute."""
        with self._changed:  # The calling thread and the sending thread both update the counter.
            self.dropped += 1
            if time.monotonic() - self._logged_s < 60:
                return
            self._logged_s = time.monotonic()
        log.warning("the webhook at %s %s: %d requests lost so far", self._address, reason, self.dropped)


def _parts(body: bytes, connected: socket.socket, deadline_s: float) -> Iterator[bytes]:
    """Yield a request's body in chunks, setting the socket's timeout to the remaining time before each chunk.

    With TLS, the timeout of a socket applies to each TLS record, and not to the whole body.
    """
    for start in range(0, len(body), _PART_BYTES):
        connected.settimeout(remaining_s(deadline_s))
        yield body[start : start + _PART_BYTES]
