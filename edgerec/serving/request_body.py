"""Receive image files in request bodies, with limits on size, time and memory use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from edgerec.utils.optional import require
from edgerec.utils.text import printable

# Maximum number of files in one request.
MAX_FILES = 64
MAX_FILE_NAME_LENGTH = 255
# Time limit in seconds for receiving a complete request body.
BODY_S = 60.0
# Maximum time in seconds between two parts of a request body.
SILENCE_S = 10.0
# Maximum total size of all request bodies in memory, as a multiple of the maximum size of a body.
BODIES_IN_MEMORY = 4
# Maximum time in seconds for reading and discarding the rest of a rejected request's body.
DISCARD_S = 2.0
# Minimum size in bytes of a chunk that is stored as a view instead of a copy.
_SMALL_BYTES = 256
# Value of the Retry-After header in seconds.
RETRY_AFTER_S = 1


def busy(reason: str) -> HTTPException:
    """Return an exception with status 503 and a Retry-After header."""
    return HTTPException(503, f"{reason}: try again later", {"Retry-After": str(RETRY_AFTER_S)})


@dataclass
class BodyMemory:
    """Limits the total memory used by request bodies.

    Attributes:
        max_body_bytes: maximum size of a body in bytes.
        used_bytes: total size in bytes of the bodies that are being received or processed.
    """

    max_body_bytes: int
    used_bytes: int = 0

    @contextmanager
    def body(self) -> Iterator[Body]:
        """Context manager that yields an empty body and releases its memory at the end."""
        body = Body(self)
        try:
            yield body
        finally:
            self.used_bytes -= body.size


@dataclass
class Body:
    """The body of a request.

    Attributes:
        size: number of received bytes.
    """

    _memory: BodyMemory
    size: int = 0

    async def receive(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        """Receive the complete body and return its content.

        Raises:
            HTTPException: the body is too large, is not received in time, or would exceed the memory limit for all
                request bodies.
        """
        maximum = self._memory.max_body_bytes
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > maximum:
            raise _too_large(maximum)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + BODY_S
        parts = list[bytes]()
        try:
            async with asyncio.timeout(SILENCE_S) as timeout:
                while (message := await receive())["type"] == "http.request":
                    if part := message.get("body", b""):
                        parts.append(part)
                        self.size += len(part)
                        self._memory.used_bytes += len(part)
                        if self.size > maximum:
                            raise _too_large(maximum)
                        if self._memory.used_bytes > BODIES_IN_MEMORY * maximum:
                            raise busy("the server is receiving too many large requests")
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
                    timeout.reschedule(min(end_s, loop.time() + SILENCE_S))
        except TimeoutError:
            raise HTTPException(408, "the request was not complete in time: send it again") from None
        raise HTTPException(408, "the client closed the connection before the request was complete")


def _too_large(maximum: int) -> HTTPException:
    return HTTPException(413, f"the request's body is larger than {maximum:,} bytes: send a smaller image")


@dataclass
class File:
    """A file in a multipart body."""

    name: str
    content: bytes


def parse_multipart(content: bytes, content_type: str) -> list[File]:
    """Parse a ``multipart/form-data`` body and return its files.

    Raises:
        HTTPException: the body is malformed, contains a field that is not a file, contains no file, or contains more
            than :data:`MAX_FILES` files.
    """
    multipart = require("python_multipart.multipart")
    # Suppress the warnings about malformed forms, because any client could fill the log.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    _, parameters = multipart.parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise HTTPException(
            400, "the multipart request has no boundary in its Content-Type header: use an HTTP library"
        )
    parts = _Parts(multipart.parse_options_header)
    try:
        parser = multipart.MultipartParser(boundary, parts.callbacks)
        parser.write(content)
        parser.finalize()
    except multipart.FormParserError as error:
        raise HTTPException(400, f"the multipart request is malformed: {printable(str(error))}") from None
    if not parts.complete:
        raise HTTPException(400, "the multipart request is malformed: its last boundary is missing")
    if not parts.files:
        raise HTTPException(400, "the multipart request contains no file: send at least one image")
    return parts.files


class _Parts:
    """Callbacks of the multipart parser, which collect the files of a form."""

    def __init__(self, parse_header: Any) -> None:
        self.files: list[File] = []
        self.complete = False
        self._parse_header = parse_header
        self._name, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._content = list[bytes | memoryview]()

    @property
    def callbacks(self) -> dict[str, Callable[..., None]]:
        """The parser's callbacks, keyed by name. Storing them would create a reference cycle with the files."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.files) == MAX_FILES:
            raise HTTPException(413, f"the request has more than {MAX_FILES} files: send several requests")
        self._headers, self._content = {}, []

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        # A view avoids copying a large chunk, but a view of a small chunk takes more memory than a copy.
        self._content.append(memoryview(data)[start:end] if end - start > _SMALL_BYTES else data[start:end])

    def _end(self) -> None:
        _, parameters = self._parse_header(self._headers.get(b"content-disposition", b""))
        name = parameters.get(b"filename")
        if name is None:
            field_name = parameters.get(b"name", b"").decode(errors="replace")[:MAX_FILE_NAME_LENGTH]
            raise HTTPException(400, f"the form field {field_name!r} is not a file: send only image files")
        self.files.append(File(name.decode(errors="replace")[:MAX_FILE_NAME_LENGTH], b"".join(self._content)))
        self._content = []

    def _finish(self) -> None:
        self.complete = True


class DiscardUnreadBody:
    """ASGI middleware that discards the rest of a rejected request's body before sending the response.

    Otherwise, the connection would be reset, and a client that is still sending data would not receive the response.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process a request."""
        complete = scope["type"] != "http" or scope["method"] in ("GET", "HEAD")

        async def observed_receive() -> Message:
            nonlocal complete
            message = await receive()
            complete = complete or not message.get("more_body", False)
            return message

        async def discarding_send(message: Message) -> None:
            if message["type"] == "http.response.start" and not complete and not _expects_continue(scope):
                try:
                    async with asyncio.timeout(DISCARD_S):
                        while not complete:
                            await observed_receive()
                except TimeoutError:
                    pass
            await send(message)

        await self._app(scope, observed_receive, discarding_send)


def _expects_continue(scope: Scope) -> bool:
    return any(name == b"expect" for name, _ in scope["headers"])
