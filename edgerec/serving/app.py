"""The ASGI application of a classification server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import Classification
from edgerec.contract.manifest import Manifest
from edgerec.errors import DataError
from edgerec.http.auth import AccessControl, first_headers
from edgerec.http.token import configured_token, required_token
from edgerec.runtime.classifier import Classifier
from edgerec.serving.config import ServeConfig
from edgerec.serving.metrics import RequestMetrics
from edgerec.serving.openapi import openapi_document
from edgerec.serving.pool import BusyError, ClassifierPool
from edgerec.serving.request_body import (
    BodyMemory,
    DiscardUnreadBody,
    busy,
    parse_multipart,
)
from edgerec.utils.atomic import user_path
from edgerec.utils.parallel import available_cpus
from edgerec.utils.text import to_json

log = logging.getLogger(__name__)

INTERNAL_ERROR = "an internal error occurred: see the log of edgerec"
TOKEN_VARIABLE, SERVER = "EDGEREC_SERVE_TOKEN", "the server"
LOOPBACK = "127.0.0.1"
# Paths that can be requested without a token.
OPEN_PATHS = frozenset({"/healthz"})
# Response headers that prevent browsers from running, embedding or storing a response.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

USAGE = """\
This server classifies images with the bundle {name!r}.

curl {token}-H 'Content-Type: image/jpeg' --data-binary @photo.jpg {address}classify
curl {token}-F image=@first.jpg -F image=@second.png {address}classify

GET /openapi.json describes all requests and responses.
GET /healthz reports whether the server works.
GET /metrics returns Prometheus metrics.
"""


class JsonResponse(Response):
    """A JSON response without NaN or infinite numbers."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content).encode()


def error_response(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response with an error message."""
    return JsonResponse({"error": message}, status, headers)


def open_pool(config: ServeConfig) -> tuple[Manifest, ClassifierPool]:
    """Open a bundle and start its worker threads."""
    bundle = Bundle.open(
        user_path(config.bundle), allowed_signers=config.allowed_signers, revoked_keys=config.revoked_keys
    )
    has_delegate = bool(bundle.manifest.delegate_for(config.delegate))
    workers = config.workers or (1 if has_delegate else max(1, available_cpus() // config.threads))
    classifiers = [
        Classifier(
            bundle,
            threads=config.threads,
            delegate=config.delegate,
            delegate_options=config.delegate_options,
            fallback=config.fallback,
            threshold=config.threshold,
        )
        for _ in range(workers)
    ]
    manifest = classifiers[0].manifest
    choose_reduction = manifest.largest_reduction if config.reduced_decoding else None
    return manifest, ClassifierPool(classifiers, max_queued=config.max_queued, choose_reduction=choose_reduction)


class Service:
    """Request handlers of the classification server."""

    def __init__(self, manifest: Manifest, pool: ClassifierPool, *, max_body_bytes: int, token: bool) -> None:
        """Create the request handlers. If ``token`` is true, clients must send a token."""
        self._manifest, self._pool = manifest, pool
        self._bodies = BodyMemory(max_body_bytes)
        self._metrics = RequestMetrics(manifest, pool)
        self._openapi = openapi_document(manifest, token=token)
        self._has_token = token

    def app(self) -> ASGIApp:
        """Return the application without access control. The pool is stopped when the application shuts down."""
        routes = [
            Route("/", self.usage),
            Route("/classify", _unused, methods=["POST"]),
            Route("/healthz", self.healthz),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
        ]
        handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _unexpected_error}

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self._pool.close)

        other_paths = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
        other_paths.router.redirect_slashes = False

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            # Bypass Starlette's routing and middleware, which would take as long as classifying a small image.
            if scope["type"] == "http" and scope["path"] == "/classify" and scope["method"] == "POST":
                await self.classify(scope, receive, send)
            else:
                await other_paths(scope, receive, send)

        return app

    async def usage(self, request: Request) -> Response:
        """Return plain-text instructions for using the server."""
        token = "-H 'Authorization: Bearer TOKEN' " if self._has_token else ""
        return PlainTextResponse(USAGE.format(name=self._manifest.name, token=token, address=str(request.base_url)))

    async def healthz(self, request: Request) -> Response:
        """Return the health of the server, with status 503 if it cannot classify images."""
        return JsonResponse({"status": "ok"}) if self._pool.healthy else JsonResponse({"status": "failing"}, 503)

    async def metrics(self, request: Request) -> Response:
        """Return the server's metrics in Prometheus' text format."""
        if not self._metrics.available:
            raise HTTPException(
                404, 'there are no metrics, because prometheus-client is missing: run pip install "edgerec[prometheus]"'
            )
        return Response(self._metrics.text(), media_type=self._metrics.content_type)

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI description of the server."""
        return JsonResponse(self._openapi)

    async def classify(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Classify the images in a request's body."""
        started_s = time.monotonic()
        try:
            result = await self._classify(scope, receive)
            status, headers = 200, {}
        except HTTPException as error:
            result, status, headers = {"error": error.detail}, error.status_code, dict(error.headers or {})
        except Exception as error:
            log.error("the server failed to process a request for /classify: %r", error)
            log.debug("the server failed", exc_info=error)
            result, status, headers = {"error": INTERNAL_ERROR}, 500, {}
        content = to_json(result).encode()
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        encoded += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": content})
        self._metrics.count(status, time.monotonic() - started_s)

    async def _classify(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        headers = first_headers(scope)
        content_type = headers.get("content-type", "application/octet-stream")
        kind = content_type.partition(";")[0].strip().lower()
        is_form = kind == "multipart/form-data"
        if not (is_form or kind.startswith("image/") or kind == "application/octet-stream"):
            raise HTTPException(
                415,
                f"the content type {kind[:100]!r} is not supported: use image/jpeg or another image type, "
                "application/octet-stream or multipart/form-data (with curl, add -H 'Content-Type: image/jpeg')",
            )
        with self._bodies.body() as body:
            if is_form:
                # Parse forms in a thread, because a form with many small parts would block the event loop for seconds.
                # Keep no reference to the body, so that its memory is released before the images are classified.
                files = await asyncio.to_thread(parse_multipart, await body.receive(receive, headers), content_type)
                names = [f"the file {file.name!r}" for file in files]
                results = await self._results([file.content for file in files], names)
                return {"results": [{"file": file.name} | result for file, result in zip(files, results, strict=True)]}
            content = await body.receive(receive, headers)
            if not content:
                raise HTTPException(400, "the request's body is empty: send an image")
            return (await self._results([content], ["the request's body"]))[0]

    async def _results(self, contents: list[bytes], names: list[str]) -> list[dict[str, Any]]:
        # Do not keep a reference to a failed future. Its exception refers to this function's variables, and the
        # reference cycle would keep the images in memory until the next garbage collection.
        futures = deque[asyncio.Future[Classification]]()
        results = []
        try:
            futures.extend(self._pool.submit(contents))
            for name in names:
                try:
                    results.append((await futures.popleft()).to_dict())
                except DataError as error:
                    raise HTTPException(400, f"{name} is not a readable image: {error}") from None
        except BusyError:
            raise busy("too many images are waiting to be classified") from None
        finally:
            for future in futures:
                future.cancel()
        return results


def create_app(bundle: str | Path | ServeConfig) -> ASGIApp:
    """Return an ASGI application that classifies images, to be run by any ASGI server.

    The ASGI server must limit the number and duration of connections. The worker threads stop at the end of the
    application's ASGI lifespan.

    Args:
        bundle: the bundle's folder or .zip, or all settings. The address in the settings is ignored. No token is
            required if neither the settings nor the environment contain one.

    Raises:
        EdgerecError: the bundle or the token cannot be used.
        MissingExtraError: a required package is not installed.

    >>> app = create_app("signs-rpi")   # doctest: +SKIP
    """
    config = bundle if isinstance(bundle, ServeConfig) else ServeConfig(bundle=bundle)
    token = required_token(configured_token(config.token, TOKEN_VARIABLE, LOOPBACK, SERVER), LOOPBACK, SERVER)
    manifest, pool = open_pool(config)
    return protected_app(manifest, pool, config.max_body_bytes, token=token)


def protected_app(
    manifest: Manifest,
    pool: ClassifierPool,
    max_body_bytes: int,
    *,
    token: str | None,
    names: frozenset[str] | None = None,
    port: int = 0,
) -> ASGIApp:
    """Return the web application with access control.

    Args:
        manifest: manifest of the served bundle.
        pool: worker threads that classify the images.
        max_body_bytes: maximum size of a request's body in bytes.
        token: token that clients must send, or None if no token is required.
        names: host names allowed in the Host header, or None to allow all.
        port: port of the server, which is part of the cookie's name.
    """
    service = Service(manifest, pool, max_body_bytes=max_body_bytes, token=token is not None)
    guard = AccessControl(
        service.app(),
        token=token,
        names=names,
        port=port,
        open_paths=OPEN_PATHS,
        reject=error_response,
        headers=HEADERS,
    )
    return DiscardUnreadBody(guard)


async def _http_error(request: Request, error: HTTPException) -> Response:
    message = error.detail
    if error.status_code == 404:
        message = f"{message}: GET / describes the requests to this server"
    elif error.status_code == 405:
        message = f"{message}: use {(error.headers or {}).get('Allow', 'another method')}"
    return error_response(message, error.status_code, error.headers)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    log.error("the server failed to process a request for %s: %r", request.url.path, error)
    log.debug("the server failed", exc_info=error)
    return error_response(INTERNAL_ERROR, 500)


async def _unused(request: Request) -> Response:
    """Register the path ``/classify``, so that Starlette rejects other methods with status 405."""
    raise HTTPException(404)
