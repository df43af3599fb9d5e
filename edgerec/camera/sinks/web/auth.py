"""Who may see the page: token, Host and Origin are looked at before anything else."""

from __future__ import annotations

import asyncio
import hashlib
import html
import ipaddress
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What the door itself needs, and anybody may have.
OPEN = frozenset({"/page.css", "/icon.svg"})
# The HTTP parser's own limit is for heads that come in parts.
MAX_HEADER_BYTES = 16_384
# Delay of the response to a wrong token, in seconds.
WRONG_TOKEN_S = 0.5
# After this many wrong tokens within LOCKOUT_S seconds, an address is locked out until LOCKOUT_S have passed.
MAX_FAILURES, LOCKOUT_S = 10, 60.0
MAX_ADDRESSES = 1024

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


class Lockout:
    """Counts wrong tokens per client address. All addresses in an IPv6 /64 network count as one address."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def remaining_s(self, address: str) -> float:
        """Return the remaining time of an address's lockout in seconds; 0 if the address is not locked out."""
        failures = self._failures.get(_network(address), deque())
        return max(0.0, failures[0] + LOCKOUT_S - time.monotonic()) if len(failures) == MAX_FAILURES else 0.0

    def add(self, address: str, count: int) -> None:
        """Add ``count`` wrong tokens to the counter of an address."""
        failures = self._failures.setdefault(_network(address), deque(maxlen=MAX_FAILURES))
        failures.extend([time.monotonic()] * count)
        self._failures.move_to_end(_network(address))
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)


class AccessControl:
    """ASGI middleware; refuses what does not belong here, and adds the security headers to every answer.

    Args:
        app: what is guarded.
        token: what a visitor must know; None asks for none.
        names: the only names, without port, that the Host header may have; None takes all. A page of another site
            whose name was made to point here (DNS rebinding) has another one.
        port: of the cookie's name, as browsers share cookies between a machine's ports.
        door: the page for a browser that has no token.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, names: frozenset[str] | None, port: int, door: str) -> None:
        self._app, self._names, self._door = app, names, door
        self._token = token.encode() if token is not None else None
        self._cookie = f"edgerec_{port}"
        self._lockout = Lockout()
        self._pass = hashlib.sha256(b"edgerec web page\0" + (self._token or b"")).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refusal, cookie = self._stranger(scope, headers), None
        if refusal is None and self._token is not None and scope["path"] not in OPEN:
            refusal, cookie = await self._admit(scope, headers)
        await (refusal or self._app)(scope, receive, _adding(send, cookie))

    async def _admit(self, scope: Scope, headers: Headers) -> tuple[Response | None, str | None]:
        """Check the token of a request; return the response if the request is refused, and the cookie to set."""
        address = (scope.get("client") or ("", 0))[0]
        query = _query(scope).get("token", "")
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        known = {
            "query": self._knows(query),
            "header": kind.lower() == "bearer" and self._knows(bearer.strip()),
            "cookie": secrets.compare_digest(cookie.encode(errors="replace"), self._pass.encode()),
        }
        attempts = [bool(query), bool(kind), bool(cookie)].count(True)
        remaining_s = self._lockout.remaining_s(address) if attempts else 0.0
        if remaining_s > 0:
            wait = str(math.ceil(remaining_s))
            said = f"There were too many wrong tokens: wait {wait} s."
            return self._closed_door(headers, said, 429, {"Retry-After": wait}), None
        if any(known.values()):
            lasting = f"{self._cookie}={self._pass}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
            return None, lasting if known["query"] else None
        if attempts:
            self._lockout.add(address, attempts)
            await asyncio.sleep(WRONG_TOKEN_S)
        said = "That token is not right." if query else "edgerec printed it when the camera started."
        # Delete an outdated cookie. Otherwise, a page that is still open would send it repeatedly and be locked out.
        expired = f"{self._cookie}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0" if cookie else None
        return self._closed_door(headers, said, 401, {"WWW-Authenticate": "Bearer"}), expired

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """The refusal of a request that is too large, or that another site made, or made look like ours."""
        host = headers.get("host", "")
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
            return PlainTextResponse(f"Expected at most {MAX_HEADER_BYTES} bytes of headers.\n", 431)
        if self._names is not None and _hostname(host) not in self._names:
            return PlainTextResponse("This name is not mine: open the address that edgerec printed.\n", 421)
        cross = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if scope["method"] in ("GET", "HEAD"):
            if cross and headers.get("sec-fetch-mode") != "navigate":
                return PlainTextResponse("This is not for other sites.\n", 403)
        elif cross or ("origin" in headers and _netloc(headers["origin"]) != host.lower()):
            return PlainTextResponse("Only the page itself may do this.\n", 403)
        return None

    def _knows(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(errors="replace"), self._token)

    def _closed_door(self, headers: Headers, said: str, status: int, more: Mapping[str, str]) -> Response:
        if "text/html" in headers.get("accept", ""):
            return HTMLResponse(self._door.replace("{{said}}", html.escape(said)), status, more)
        if status == 429:
            return PlainTextResponse(f"{said}\n", status, more)
        return PlainTextResponse(
            "This needs the token that edgerec printed: ?token=… or Authorization: Bearer …\n", status, more
        )


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _adding(send: Send, cookie: str | None) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update(HEADERS)
            if cookie:
                headers.append("Set-Cookie", cookie)
        await send(message)

    return sending


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


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
