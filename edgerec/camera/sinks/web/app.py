"""The page's requests and their answers."""

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
from edgerec.utils.bounded import parse_json
from edgerec.utils.clock import unix_s
from edgerec.utils.text import to_json

log = logging.getLogger(__name__)

MAX_CLIENTS = 16
MAX_BODY_BYTES = 1024
BODY_S = 5.0
# How often a client's stream looks for something new, and how long it is silent at most.
LOOK_S = 1 / 15
BEAT_S = 1.0
IMAGE_WAIT_S = 5.0

FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Page:
    """Answers from the board, and saves to the album."""

    def __init__(self, board: PageState, labels: Sequence[str], album: LabelStore | None) -> None:
        self._board, self._labels, self._album = board, tuple(labels), album
        self._clients = 0
        self._saving, self._encoding = asyncio.Lock(), asyncio.Lock()

    def app(self) -> Starlette:
        """The application, without its guard."""
        routes = [
            Route("/", _file("page.html")),
            *(Route(f"/{name}", _file(name)) for name in FILES if name != "page.html"),
            Route("/events", self.events),
            Route("/picture/{source:int}", self.picture),
            Route("/held/{key}", self.held),
            Route("/held/{key}/file", self.snapshot),
            Route("/hold", self.hold, methods=["POST"]),
            Route("/save", self.save, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refused, EdgerecError: _failed, Exception: _broken}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def events(self, request: Request) -> Response:
        """Everything that changes, as server-sent events; a client that is slow gets fewer of them, not later ones."""
        if self._clients >= MAX_CLIENTS:
            raise HTTPException(503, f"{MAX_CLIENTS} pages look at this camera already: close one of them")
        page = self

        class Stream(StreamingResponse):
            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                page._clients += 1
                try:
                    await super().__call__(scope, receive, send)
                finally:
                    page._clients -= 1

        return Stream(self._news(), media_type="text/event-stream")

    async def picture(self, request: Request) -> Response:
        """The newest picture of a source as JPEG, when it is another frame than ``?after=``; 204 when none came."""
        after = _whole(request.query_params.get("after", "-1"))
        end = asyncio.get_running_loop().time() + IMAGE_WAIT_S
        while not self._board.closed and asyncio.get_running_loop().time() < end:
            shown = self._known(request.path_params["source"])
            if shown is not None and shown.result.frame.index != after:
                return _jpeg(shown)
            await asyncio.sleep(LOOK_S / 4)
        return Response(status_code=204)

    async def hold(self, request: Request) -> Response:
        """Keep the picture that a person points at until it has its label."""
        fields = await _body(request)
        source, frame = _integer(fields, "source"), _integer(fields, "frame")
        self._known(source)
        kept = self._board.hold(source, frame)
        if kept is None:
            raise HTTPException(409, "there is no picture yet")
        key, shown = kept
        result = shown.result
        answer = result.decision or result.classification
        said = {"frame": result.frame.index, "label": answer.label, "index": answer.index, "file": file_name(result)}
        return JSONResponse({"hold": key} | said)

    async def held(self, request: Request) -> Response:
        """A picture that is kept, as JPEG."""
        return _jpeg(self._kept(request.path_params["key"]))

    async def snapshot(self, request: Request) -> Response:
        """A picture that is kept, whole and without loss, as a file that the browser puts where it puts files."""
        key = request.path_params["key"]
        result = self._kept(key).result
        async with self._encoding:  # a large picture takes a while: never more than one of them at a time
            png = await asyncio.to_thread(encode_png, result.frame.image)
        self._board.spare(key)
        return Response(
            png,
            media_type="image/png",
            headers={"Content-Disposition": f'attachment; filename="{file_name(result)}"'},
        )

    async def save(self, request: Request) -> Response:
        """Write a picture that is kept under the label of the given index."""
        fields = await _body(request)
        key, index = fields.get("hold"), _integer(fields, "index")
        if self._album is None:
            raise HTTPException(409, "there is no folder to save to: start with --web-save DIR")
        if not isinstance(key, str):
            raise HTTPException(400, "hold is the key that /hold gave")
        frame = self._kept(key).result.frame
        try:
            async with self._saving:  # one after the other: a disk gains nothing by more, and names stay unique
                path = await asyncio.to_thread(self._album.save, frame, index)
        except LookupError as error:
            raise HTTPException(400, str(error)) from None
        self._board.release(key)
        return JSONResponse({"label": self._labels[index], "file": path.name, "saved": self._album.saved})

    async def _news(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        yield _event("hello", {"labels": self._labels, "saves": self._album is not None})
        seen, told, sent_s = -1, 0, 0.0
        while not self._board.closed:
            version = self._board.version
            if version != seen or loop.time() - sent_s >= BEAT_S:
                news = self._board.news(told)
                seen, sent_s = version, loop.time()
                told = news["story"][-1]["number"] if news["story"] else told
                yield _event("news", news)
            await asyncio.sleep(LOOK_S)

    def _known(self, source: int) -> ShownImage | None:
        try:
            return self._board.picture(source)
        except LookupError:
            raise HTTPException(404, f"there is no source {source}") from None

    def _kept(self, key: str) -> ShownImage:
        shown = self._board.held(key)
        if shown is None:
            raise HTTPException(410, "that picture is no longer kept: take it again")
        return shown


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a small request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected application/json")
    too_much = HTTPException(413, f"expected at most {MAX_BODY_BYTES} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:9]) > MAX_BODY_BYTES:
        raise too_much
    read = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                read += part
                if len(read) > MAX_BODY_BYTES:
                    raise too_much
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, "the request did not end") from None
    try:
        fields = parse_json(bytes(read))
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise HTTPException(400, "expected a JSON object")
    return fields


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < 2**53:
        raise HTTPException(400, f"{name} is a whole number, 0 or more")
    return value


def _whole(text: str) -> int:
    try:
        return int(text[:20])
    except ValueError:
        raise HTTPException(400, "after is a frame's number") from None


def file_name(result: Result) -> str:
    """Return ``SOURCE-TIME.png`` with the capture time, in ASCII letters, digits, ``_`` and ``-``."""
    grabbed_s = unix_s(result.frame.captured_s)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(grabbed_s))
    return f"{safe_name(source_of(result))}-{stamp}-{int(grabbed_s * 1000) % 1000:03d}.png"


def _jpeg(shown: ShownImage) -> Response:
    return Response(shown.jpeg, media_type="image/jpeg", headers={"X-Frame": str(shown.result.frame.index)})


def _event(kind: str, fields: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {to_json(fields)}\n\n"


def page_file(name: str) -> str:
    """The text of one of the page's files."""
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _file(name: str) -> Any:
    text = page_file(name)

    async def answer(request: Request) -> Response:
        return Response(text, media_type=FILES[name])

    return answer


async def _refused(request: Request, error: HTTPException) -> Response:
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


async def _failed(request: Request, error: EdgerecError) -> Response:
    return PlainTextResponse(f"{error}\n", 507)


async def _broken(request: Request, error: Exception) -> Response:
    log.error("the web page failed at %s: %s", request.url.path, error)
    log.debug("the web page", exc_info=error)
    return PlainTextResponse("edgerec failed at this; its log says why\n", 500)
