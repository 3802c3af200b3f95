"""The routes: each turns a request into the service's own message, and its answer into proto3's JSON."""

import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from serving.api.responses import MAX_PHOTOS
from serving.client.client import DEFAULT_TIMEOUT_S, MESSAGE_LIMIT_BYTES
from serving.http_api.errors import from_grpc, refusal
from serving.http_api.taxonomies import Taxonomies
from serving.http_api.upstream import Upstream
from serving.protocol import listing_vision_pb2 as pb
from vision.taxonomy import Taxonomy

__all__ = ["BODY_LIMIT_BYTES", "make_app"]

BODY_LIMIT_BYTES = MESSAGE_LIMIT_BYTES * 4 // 3 + (1 << 20)
"""Of a body: the largest message, in base64."""
MAX_TIMEOUT_S = 60.0
_PASSED_ON = ("authorization", "x-request-id", "traceparent", "tracestate")
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(upstream: Upstream, taxonomies: Taxonomies) -> Starlette:
    """The application.

    Args:
        upstream: of the service.
        taxonomies: of the releases that are loaded.
    """

    async def classify(request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            asked = await _listing_of_form(request)
        else:
            asked = await _parsed(request, pb.ClassifyListingRequest())
        return await _answered(upstream, "ClassifyListing", asked, request)

    async def model(request: Request) -> Response:
        return await _answered(upstream, "GetModel", pb.GetModelRequest(), request)

    async def explain(request: Request) -> Response:
        asked = await _parsed(request, pb.ExplainPhotoRequest())
        return await _answered(upstream, "ExplainPhoto", asked, request)

    async def outcome(request: Request) -> Response:
        asked = await _parsed(request, pb.ReportOutcomeRequest())
        return await _answered(upstream, "ReportOutcome", asked, request)

    async def names(request: Request) -> Response:
        # Whoever may not ask the model may not read its labels.
        answered = await _answered(upstream, "GetModel", pb.GetModelRequest(), request)
        if answered.status_code != 200:
            return answered
        answering = json.loads(bytes(answered.body))["model"]["taxonomyVersion"]
        version = request.query_params.get("version", answering)
        found = await run_in_threadpool(taxonomies.find, version)
        if found is None:
            said = f"{version[:100]!r} is of no model that is loaded; the one that answers has {answering!r}"
            return refusal(404, f"version: {said}", reason="TAXONOMY_UNKNOWN", status="NOT_FOUND")
        return JSONResponse(_names(found))

    routes = [
        Route("/v1/listings:classify", _refusing(classify), methods=["POST"]),
        Route("/v1/photos:explain", _refusing(explain), methods=["POST"]),
        Route("/v1/outcomes", _refusing(outcome), methods=["POST"]),
        Route("/v1/model", _refusing(model), methods=["GET"]),
        Route("/v1/taxonomy", _refusing(names), methods=["GET"]),
        Route("/openapi.json", _file("openapi.json", "application/json"), methods=["GET"]),
        *(Route(path, _file(f"page/{found[0]}", found[1]), methods=["GET"]) for path, found in _PAGE.items()),
    ]
    middleware = [Middleware(_Headers), Middleware(_BodyLimit)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _told})


def _file(name: str, media_type: str) -> Endpoint:
    content = (resources.files("serving.http_api") / name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return send


class _Refused(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _refusing(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def run(request: Request) -> Response:
        try:
            return await endpoint(request)
        except _Refused as refused:
            return refused.response

    return run


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), reason=f"HTTP_{error.status_code}", status="INVALID_ARGUMENT")


async def _answered(upstream: Upstream, method: str, asked: Message, request: Request) -> Response:
    metadata = [(name, value) for name in _PASSED_ON if (value := request.headers.get(name))]
    try:
        answer = await upstream.call(method, asked, timeout_s=_timeout_s(request), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return from_grpc(error)
    return JSONResponse(json_format.MessageToDict(answer, always_print_fields_with_no_presence=True))


def _timeout_s(request: Request) -> float:
    text = request.headers.get("x-timeout-ms")
    if text is None:
        return DEFAULT_TIMEOUT_S
    try:
        timeout_s = float(text) / 1000
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        said = f"{text[:20]!r} is not a number of milliseconds in (0, {1000 * MAX_TIMEOUT_S:.0f}]"
        raise _Refused(refusal(400, f"x-timeout-ms: {said}", reason="TIMEOUT_OUT_OF_RANGE"))
    return timeout_s


async def _parsed(request: Request, message: Any) -> Any:
    try:
        return json_format.Parse(await request.body(), message)
    # The parser lets through what Python's own readers of text and JSON raise.
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        said = str(error)[:300]
        raise _Refused(
            refusal(400, f"the body is not {message.DESCRIPTOR.name} in JSON: {said}", reason="BODY_UNREADABLE")
        ) from error


async def _listing_of_form(request: Request) -> pb.ClassifyListingRequest:
    try:
        form = await request.form(max_files=MAX_PHOTOS + 1, max_fields=8)
    except (HTTPException, MultiPartException) as error:
        said = getattr(error, "detail", None) or getattr(error, "message", "")
        raise _Refused(refusal(400, f"the form cannot be read: {said}", reason="BODY_UNREADABLE")) from error
    try:
        fields: dict[str, str] = {name: value for name, value in form.items() if isinstance(value, str)}
        unknown = [name for name in form if name not in ("photos", "listing_id", "alternative_count")]
        if unknown:
            said = f"{unknown[0]!r} is not one of photos, listing_id, alternative_count"
            raise _Refused(refusal(400, said, reason="FIELD_UNKNOWN", violations={unknown[0][:100]: said}))
        asked = pb.ClassifyListingRequest(listing_id=fields.get("listing_id", ""))
        for photo in form.getlist("photos"):
            asked.photos.add(content=photo.encode() if isinstance(photo, str) else await photo.read())
    finally:
        await form.close()
    return _with_alternatives(asked, fields)


def _with_alternatives(asked: pb.ClassifyListingRequest, fields: Mapping[str, str]) -> pb.ClassifyListingRequest:
    if "alternative_count" in fields:
        try:
            asked.alternative_count = int(fields["alternative_count"])
        except ValueError as error:
            said = f"{fields['alternative_count'][:20]!r} is not a whole number"
            raise _Refused(
                refusal(
                    400,
                    f"alternative_count: {said}",
                    reason="ALTERNATIVE_COUNT_OUT_OF_RANGE",
                    violations={"alternative_count": said},
                )
            ) from error
    return asked


def _names(taxonomy: Taxonomy) -> dict[str, Any]:
    """Ids, parents and names in all languages."""
    return {
        "version": taxonomy.version,
        "categories": [{"id": c.id, "parentId": c.parent_id, "names": dict(c.names)} for c in taxonomy.categories],
        "brands": [{"id": b.id, "names": dict(b.names)} for b in taxonomy.brands],
    }


class _Headers:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        await self._app(scope, receive, sending)


class _BodyLimit:
    """Refuses a body that is too long by its header, and stops reading one that does not say so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        num_read = 0

        async def receiving() -> AsgiMessage:
            nonlocal num_read
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > BODY_LIMIT_BYTES:
                raise HTTPException(413, _TOO_LONG)
            return message

        if length.isdigit() and int(length) > BODY_LIMIT_BYTES:
            refused = refusal(413, _TOO_LONG, reason="HTTP_413")
            return await refused(scope, receive, send)
        await self._app(scope, receiving, send)


_TOO_LONG = f"a body may hold {BODY_LIMIT_BYTES >> 20} MiB; send fewer or smaller photos"
