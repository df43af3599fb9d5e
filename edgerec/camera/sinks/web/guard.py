"""Who may see the page: token, Host and Origin are looked at before anything else."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What the door itself needs, and anybody may have.
OPEN = frozenset({"/page.css", "/icon.svg"})
# The HTTP parser's own limit is for heads that come in parts.
MOST_HEADER_BYTES = 16_384
# A wrong token costs this long, so that guessing does not pay.
WRONG_TOKEN_S = 0.5

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


class Guard:
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
        self._pass = hashlib.sha256(b"edgerec web page\0" + (self._token or b"")).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refusal, cookie = self._stranger(scope, headers), None
        if refusal is None and self._token is not None and scope["path"] not in OPEN:
            given = _query(scope).get("token", "")
            if self._knows(given):
                cookie = f"{self._cookie}={self._pass}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
            elif not self._bears(headers):
                if given or "authorization" in headers:
                    await asyncio.sleep(WRONG_TOKEN_S)
                refusal = self._closed_door(headers, wrong=bool(given))
        await (refusal or self._app)(scope, receive, _adding(send, cookie))

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """The refusal of a request that is too large, or that another site made, or made look like ours."""
        host = headers.get("host", "")
        if sum(len(name) + len(value) for name, value in headers.raw) > MOST_HEADER_BYTES:
            return PlainTextResponse(f"Expected at most {MOST_HEADER_BYTES} bytes of headers.\n", 431)
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

    def _bears(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._knows(given.strip()):
            return True
        passed = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        return secrets.compare_digest(passed.encode(errors="replace"), self._pass.encode())

    def _closed_door(self, headers: Headers, *, wrong: bool) -> Response:
        sign = {"WWW-Authenticate": "Bearer"}
        if "text/html" in headers.get("accept", ""):
            said = "That token is not right." if wrong else "edgerec printed it when the camera started."
            return HTMLResponse(self._door.replace("{{said}}", said), 401, sign)
        return PlainTextResponse(
            "This needs the token that edgerec printed: ?token=… or Authorization: Bearer …\n", 401, sign
        )


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
