"""Starlette routes and request handlers of the web page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edgerec.camera.frame import Result
from edgerec.camera.sinks.events import safe_name, source_of
from edgerec.camera.sinks.web.label_store import LabelStore
from edgerec.camera.sinks.web.state import PageState, ShownImage
from edgerec.contract.preprocess import encode_png
from edgerec.errors import EdgerecError
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.clock import unix_s
from edgerec.utils.text import to_json

log = logging.getLogger(__name__)

MAX_CLIENTS = 16
MAX_BODY_BYTES = 1024
BODY_S = 5.0
# Interval in seconds at which a client's event stream checks for new data.
POLL_S = 1 / 15
# Maximum time in seconds between two events in an event stream.
HEARTBEAT_S = 1.0
# Maximum time in seconds to wait for a new image before the response 204 (No Content) is sent.
IMAGE_WAIT_S = 5.0

# Paths of the login page's files, which can be requested without a token.
LOGIN_PAGE_FILES = frozenset({"/page.css", "/icon.svg"})

FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Page:
    """Handles the web page's requests.

    Args:
        state: the page's state.
        labels: the bundle's labels.
        label_store: store for labeled images, or None if saving is disabled.
    """

    def __init__(self, state: PageState, labels: Sequence[str], label_store: LabelStore | None) -> None:
        self._state, self._labels, self._label_store = state, tuple(labels), label_store
        self._clients = 0
        self._saving, self._encoding = asyncio.Lock(), asyncio.Lock()

    def app(self) -> Starlette:
        """Return the web application without access control."""
        routes = [
            Route("/", _serve_file("page.html")),
            *(Route(f"/{name}", _serve_file(name)) for name in FILES if name != "page.html"),
            Route("/events", self.events),
            Route("/image/{source:int}", self.image),
            Route("/held/{key}", self.held),
            Route("/held/{key}/file", self.snapshot),
            Route("/hold", self.hold, methods=["POST"]),
            Route("/save", self.save, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _http_error,
            EdgerecError: _edgerec_error,
            Exception: _unexpected_error,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    async def events(self, request: Request) -> Response:
        """Send all changes as server-sent events. A slow client receives fewer events."""
        if self._clients >= MAX_CLIENTS:
            raise HTTPException(503, f"this camera is already open in {MAX_CLIENTS} pages: close one of them")
        page = self

        class Stream(StreamingResponse):
            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                page._clients += 1
                try:
                    await super().__call__(scope, receive, send)
                finally:
                    page._clients -= 1

        return Stream(self._news(), media_type="text/event-stream")

    async def image(self, request: Request) -> Response:
        """Send a source's newest image as JPEG.

        The response is delayed until the frame index differs from the query parameter ``after``. The status is 204 if
        no such image arrives within ``IMAGE_WAIT_S``.
        """
        after = _parse_frame_index(request.query_params.get("after", "-1"))
        source = request.path_params["source"]
        end = asyncio.get_running_loop().time() + IMAGE_WAIT_S
        while not self._state.closed and asyncio.get_running_loop().time() < end:
            try:
                shown = self._state.newest_image(source)
            except LookupError:
                raise _no_source(source) from None
            if shown is not None and shown.result.frame.index != after:
                return _jpeg(shown)
            await asyncio.sleep(POLL_S / 4)
        return Response(status_code=204)

    async def hold(self, request: Request) -> Response:
        """Keep the displayed image in memory until the user selects its label."""
        fields = await _body(request)
        source, frame = _integer(fields, "source"), _integer(fields, "frame")
        try:
            pending = self._state.add_pending(source, frame)
        except LookupError:
            raise _no_source(source) from None
        if pending is None:
            raise HTTPException(409, "the source has no image yet: try again later")
        key, shown = pending
        result = shown.result
        prediction = result.decision or result.classification
        fields = {
            "frame": result.frame.index,
            "label": prediction.label,
            "index": prediction.index,
            "file": snapshot_name(result),
        }
        return JSONResponse({"hold": key} | fields)

    async def held(self, request: Request) -> Response:
        """Send a pending image as JPEG."""
        return _jpeg(self._pending_image(request.path_params["key"]))

    async def snapshot(self, request: Request) -> Response:
        """Send a pending image as a full-resolution PNG download."""
        key = request.path_params["key"]
        result = self._pending_image(key).result
        async with self._encoding:  # Images are encoded one at a time because encoding a large image is slow.
            png = await asyncio.to_thread(encode_png, result.frame.image)
        self._state.evict_first(key)
        return Response(
            png,
            media_type="image/png",
            headers={"Content-Disposition": f'attachment; filename="{snapshot_name(result)}"'},
        )

    async def save(self, request: Request) -> Response:
        """Save a pending image with the label selected by the user."""
        fields = await _body(request)
        key, index = fields.get("hold"), _integer(fields, "index")
        if self._label_store is None:
            raise HTTPException(
                409, "there is no folder for labeled images: start edgerec camera with --web-save FOLDER"
            )
        if not isinstance(key, str):
            raise HTTPException(400, "the field 'hold' must be the key that /hold has returned")
        frame = self._pending_image(key).result.frame
        try:
            async with self._saving:  # Images are saved one at a time so that their file names are unique.
                path = await asyncio.to_thread(self._label_store.save, frame, index)
        except LookupError as error:
            raise HTTPException(400, str(error)) from None
        self._state.remove_pending(key)
        return JSONResponse({"label": self._labels[index], "file": path.name, "saved": self._label_store.saved})

    async def _news(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        yield _event("hello", {"labels": self._labels, "saves": self._label_store is not None})
        last_version, last_number, sent_s = -1, 0, 0.0
        while not self._state.closed:
            version = self._state.version
            if version != last_version or loop.time() - sent_s >= HEARTBEAT_S:
                news = self._state.news(last_number)
                last_version, sent_s = version, loop.time()
                last_number = news["story"][-1]["number"] if news["story"] else last_number
                yield _event("news", news)
            await asyncio.sleep(POLL_S)

    def _pending_image(self, key: str) -> ShownImage:
        shown = self._state.pending_image(key)
        if shown is None:
            raise HTTPException(410, "this image is no longer in memory: take it again")
        return shown


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected application/json")
    too_large = HTTPException(413, f"expected at most {MAX_BODY_BYTES} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:9]) > MAX_BODY_BYTES:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BODY_BYTES:
                    raise too_large
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, "the request was not complete in time") from None
    try:
        fields = parse_json(bytes(content))
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise HTTPException(400, "expected a JSON object")
    return fields


def _no_source(number: int) -> HTTPException:
    return HTTPException(404, f"there is no source {number}")


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < 2**53:
        raise HTTPException(400, f"the field {name!r} must be an integer of at least 0")
    return value


def _parse_frame_index(text: str) -> int:
    try:
        return int(text[:20])
    except ValueError:
        raise HTTPException(400, "the query parameter 'after' must be the index of a frame") from None


def snapshot_name(result: Result) -> str:
    """Return the file name of a downloaded image, ``SOURCE-TIME.png``, in ASCII characters."""
    grabbed_s = unix_s(result.frame.captured_s)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(grabbed_s))
    return f"{safe_name(source_of(result))}-{stamp}-{int(grabbed_s * 1000) % 1000:03d}.png"


def _jpeg(shown: ShownImage) -> Response:
    return Response(shown.jpeg, media_type="image/jpeg", headers={"X-Frame": str(shown.result.frame.index)})


def _event(kind: str, fields: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {to_json(fields)}\n\n"


def page_file(name: str) -> str:
    """Return the content of one of the web page's files, e.g. ``page.html``."""
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _serve_file(name: str) -> Any:
    text = page_file(name)

    async def respond(request: Request) -> Response:
        return Response(text, media_type=FILES[name])

    return respond


async def _http_error(request: Request, error: HTTPException) -> Response:
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


async def _edgerec_error(request: Request, error: EdgerecError) -> Response:
    return PlainTextResponse(f"{error}\n", 507)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    log.error("the web page failed to process a request for %s: %s", request.url.path, error)
    log.debug("the web page failed", exc_info=error)
    return PlainTextResponse("An internal error occurred: see the log of edgerec.\n", 500)
