"""Check the token and the Host and Origin headers of each request.

Starlette's ``TrustedHostMiddleware`` is not used, because it does not accept IPv6 addresses in the Host header.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import ipaddress
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Maximum total size of a request's headers in bytes.
MAX_HEADER_BYTES = 16_384
# Delay in seconds before the response to a wrong token.
WRONG_TOKEN_S = 0.5
# Lock out a client for the rest of LOCKOUT_S seconds after MAX_FAILURES wrong tokens within this time.
MAX_FAILURES, LOCKOUT_S = 10, 60.0
MAX_ADDRESSES = 1024

# Response headers that prevent browsers from running, embedding or storing a response.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}

# Function that creates an error response from a message, a status code and additional headers.
RejectionResponse = Callable[[str, int, Mapping[str, str]], Response]


def plain_text_response(message: str, status: int, headers: Mapping[str, str]) -> Response:
    """Return a plain-text response with a message."""
    return PlainTextResponse(f"{message}\n", status, headers)


class Lockout:
    """Counts failed login attempts for each IPv4 address and each IPv6 /64 network."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def remaining_s(self, address: str) -> float:
        """Return the remaining lockout time of an IP address in seconds, or 0 if it is not locked out."""
        failures = self._failures.get(_network(address), deque())
        return max(0.0, failures[0] + LOCKOUT_S - time.monotonic()) if len(failures) == MAX_FAILURES else 0.0

    def add(self, address: str, count: int) -> None:
        """Record ``count`` failed login attempts from an IP address."""
        failures = self._failures.setdefault(_network(address), deque(maxlen=MAX_FAILURES))
        failures.extend([time.monotonic()] * count)
        self._failures.move_to_end(_network(address))
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)


class AccessControl:
    """ASGI middleware that rejects unauthorized requests and adds security headers to each response.

    Args:
        app: the protected application.
        token: token that clients must send, or None if no token is required.
        names: host names, without port, that are allowed in the Host header. None allows all. A list of names
            prevents DNS rebinding.
        port: port of the server, which is part of the cookie's name because all ports of a host share cookies.
        login_page: HTML page for browsers without a valid token. None sends the response of ``reject`` instead.
        open_paths: paths that can be requested without a token.
        reject: function that creates the responses to rejected requests.
        headers: headers that are added to each response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        names: frozenset[str] | None,
        port: int,
        login_page: str | None = None,
        open_paths: frozenset[str] = frozenset(),
        reject: RejectionResponse = plain_text_response,
        headers: Mapping[str, str] = HEADERS,
    ) -> None:
        self._app, self._names, self._login_page = app, names, login_page
        self._open_paths, self._reject = open_paths, reject
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._token = token.encode() if token is not None else None
        self._cookie = f"edgerec_{port}"
        self._lockout = Lockout()
        self._cookie_value = hashlib.sha256(b"edgerec web page\0" + (self._token or b"")).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or reject it with an error response."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        headers = first_headers(scope)
        rejection, cookie = self._reject_foreign(scope, headers), None
        if rejection is None and self._token is not None and scope["path"] not in self._open_paths:
            rejection, cookie = await self._authenticate(scope, headers)
        headers_to_add = [*self._headers, (b"set-cookie", cookie.encode())] if cookie else self._headers
        await (rejection or self._app)(scope, receive, _with_headers(send, headers_to_add))

    async def _authenticate(self, scope: Scope, headers: Mapping[str, str]) -> tuple[Response | None, str | None]:
        """Check a request's token. Return an optional error response and an optional Set-Cookie header."""
        address = (scope.get("client") or ("", 0))[0]
        query = _query(scope).get("token", "")
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        valid = {
            "query": self._is_token(query),
            "header": kind.lower() == "bearer" and self._is_token(bearer.strip()),
            "cookie": secrets.compare_digest(cookie.encode(errors="replace"), self._cookie_value.encode()),
        }
        attempts = [bool(query), bool(kind), bool(cookie)].count(True)
        remaining_s = self._lockout.remaining_s(address) if attempts else 0.0
        if remaining_s > 0:
            wait = str(math.ceil(remaining_s))
            message = f"There were too many wrong tokens: wait {wait} s."
            return self._unauthorized(headers, message, 429, {"Retry-After": wait}), None
        if any(valid.values()):
            new_cookie = f"{self._cookie}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
            return None, new_cookie if valid["query"] else None
        if attempts:
            self._lockout.add(address, attempts)
            await asyncio.sleep(WRONG_TOKEN_S)
        message = "The token is wrong." if query else "edgerec printed the token when the camera started."
        # Delete an outdated cookie, because a page that keeps sending a wrong token would be locked out.
        expired = f"{self._cookie}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0" if cookie else None
        return self._unauthorized(headers, message, 401, {"WWW-Authenticate": "Bearer"}), expired

    def _reject_foreign(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Return an error response if the request is cross-site or its headers are too large, otherwise None."""
        host = headers.get("host", "")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return self._reject(f"Expected at most {MAX_HEADER_BYTES} bytes of headers.", 431, {})
        if self._names is not None and _hostname(host) not in self._names:
            return self._reject("This host name is not allowed: use the address that edgerec printed.", 421, {})
        is_cross_site = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if scope["method"] in ("GET", "HEAD"):
            if is_cross_site and headers.get("sec-fetch-mode") != "navigate":
                return self._reject("Requests from other sites are not allowed.", 403, {})
        elif is_cross_site or ("origin" in headers and _netloc(headers["origin"]) != host.lower()):
            return self._reject("Web pages of other sites may not send this request.", 403, {})
        return None

    def _is_token(self, candidate: str) -> bool:
        return self._token is not None and secrets.compare_digest(candidate.encode(errors="replace"), self._token)

    def _unauthorized(
        self, headers: Mapping[str, str], message: str, status: int, headers_to_add: Mapping[str, str]
    ) -> Response:
        if self._login_page is not None and "text/html" in headers.get("accept", ""):
            return HTMLResponse(self._login_page.replace("{{message}}", html.escape(message)), status, headers_to_add)
        if status != 429:
            message = "The server's token is required: send ?token=… or Authorization: Bearer …"
        return self._reject(message, status, headers_to_add)


def first_headers(scope: Scope) -> dict[str, str]:
    """Return the headers of a request by lowercase name. If a header occurs several times, return its first value."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return send_with_headers


def _query(scope: Scope) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=8))
    except ValueError:
        return {}


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


@lru_cache(maxsize=64)
def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
