"""The HTTP routes: each converts a request to the gRPC message and the response to proto3 JSON."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from listing_vision_client.errors import FieldViolation
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.limits import DEFAULT_TIMEOUT_S, MAX_PHOTOS, MAX_TIMEOUT_S, REQUEST_LIMIT_BYTES
from serving.http_api.errors import error_response, from_grpc_error
from serving.http_api.upstream import Upstream

__all__ = ["BODY_LIMIT_BYTES", "create_app"]

BODY_LIMIT_BYTES = REQUEST_LIMIT_BYTES * 4 // 3 + (1 << 20)
"""Largest body: the largest message, in base64."""
_FORWARDED_HEADERS = ("authorization", "x-request-id", "traceparent", "tracestate")
_PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
}
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(upstream: Upstream) -> Starlette:
    """Create the application; `upstream` is the connection to the service."""

    async def classify(request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            grpc_request = await _parse_form(request)
        else:
            grpc_request = await _parse_body(request, pb.ClassifyListingRequest())
        return await _call_service(upstream, "ClassifyListing", grpc_request, request)

    async def model(request: Request) -> Response:
        return await _call_service(upstream, "GetModel", pb.GetModelRequest(), request)

    async def explain(request: Request) -> Response:
        grpc_request = await _parse_body(request, pb.ExplainPhotoRequest())
        return await _call_service(upstream, "ExplainPhoto", grpc_request, request)

    async def outcome(request: Request) -> Response:
        grpc_request = await _parse_body(request, pb.ReportOutcomeRequest())
        return await _call_service(upstream, "ReportOutcome", grpc_request, request)

    async def get_taxonomy(request: Request) -> Response:
        grpc_request = pb.GetTaxonomyRequest(
            taxonomy_version=request.query_params.get("taxonomyVersion", ""),
            language_code=request.query_params.get("languageCode", ""),
        )
        return await _call_service(upstream, "GetTaxonomy", grpc_request, request)

    routes = [
        Route("/v1/listings:classify", _catch_error_response(classify), methods=["POST"]),
        Route("/v1/photos:explain", _catch_error_response(explain), methods=["POST"]),
        Route("/v1/outcomes", _catch_error_response(outcome), methods=["POST"]),
        Route("/v1/model", _catch_error_response(model), methods=["GET"]),
        Route("/v1/taxonomy", _catch_error_response(get_taxonomy), methods=["GET"]),
        Route("/openapi.json", _create_file_endpoint("openapi.json", "application/json"), methods=["GET"]),
        *(
            Route(path, _create_file_endpoint(f"page/{found[0]}", found[1]), methods=["GET"])
            for path, found in _PAGE_FILES.items()
        ),
    ]
    middleware = [Middleware(_SecurityHeaders), Middleware(_BodyLimit)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _http_exception_handler})


def _create_file_endpoint(name: str, media_type: str) -> Endpoint:
    content = (resources.files("serving.http_api") / name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return send


class _ErrorResponse(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _catch_error_response(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def run(request: Request) -> Response:
        try:
            return await endpoint(request)
        except _ErrorResponse as refused:
            return refused.response

    return run


async def _http_exception_handler(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(
        error.status_code, str(error.detail), reason=f"HTTP_{error.status_code}", status="INVALID_ARGUMENT"
    )


async def _call_service(upstream: Upstream, method: str, grpc_request: Message, request: Request) -> Response:
    metadata = [(name, value) for name in _FORWARDED_HEADERS if (value := request.headers.get(name))]
    try:
        grpc_response = await upstream.call(method, grpc_request, timeout_s=_read_timeout_s(request), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return from_grpc_error(error)
    return JSONResponse(json_format.MessageToDict(grpc_response, always_print_fields_with_no_presence=True))


def _read_timeout_s(request: Request) -> float:
    text = request.headers.get("x-timeout-ms")
    if text is None:
        return DEFAULT_TIMEOUT_S
    try:
        timeout_s = float(text) / 1000
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        detail = f"{text[:20]!r} is not a number of milliseconds in (0, {1000 * MAX_TIMEOUT_S:.0f}]"
        raise _ErrorResponse(error_response(400, f"x-timeout-ms: {detail}", reason="TIMEOUT_OUT_OF_RANGE"))
    return timeout_s


async def _parse_body(request: Request, message: Any) -> Any:
    try:
        return json_format.Parse(await request.body(), message)
    # The parser does not wrap what Python's text and JSON readers raise.
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        detail = str(error)[:300]
        raise _ErrorResponse(
            error_response(
                400, f"the body is not {message.DESCRIPTOR.name} in JSON: {detail}", reason="BODY_UNREADABLE"
            )
        ) from error


async def _parse_form(request: Request) -> pb.ClassifyListingRequest:
    try:
        form = await request.form(max_files=MAX_PHOTOS + 1, max_fields=8)
    except (HTTPException, MultiPartException) as error:
        detail = getattr(error, "detail", None) or getattr(error, "message", "")
        raise _ErrorResponse(
            error_response(400, f"the form cannot be read: {detail}", reason="BODY_UNREADABLE")
        ) from error
    try:
        fields: dict[str, str] = {name: value for name, value in form.items() if isinstance(value, str)}
        unknown = [name for name in form if name not in ("photos", "listing_id", "alternative_count")]
        if unknown:
            detail = f"{unknown[0]!r} is not one of photos, listing_id, alternative_count"
            violation = FieldViolation(field=unknown[0][:100], reason="FIELD_UNKNOWN", description=detail)
            raise _ErrorResponse(
                error_response(
                    400,
                    detail,
                    reason="FIELD_UNKNOWN",
                    violations=[violation],
                )
            )
        grpc_request = pb.ClassifyListingRequest(listing_id=fields.get("listing_id", ""))
        for photo in form.getlist("photos"):
            grpc_request.photos.add(content=photo.encode() if isinstance(photo, str) else await photo.read())
    finally:
        await form.close()
    return _set_alternative_count(grpc_request, fields)


def _set_alternative_count(
    grpc_request: pb.ClassifyListingRequest, fields: Mapping[str, str]
) -> pb.ClassifyListingRequest:
    if "alternative_count" in fields:
        try:
            grpc_request.alternative_count = int(fields["alternative_count"])
        except ValueError as error:
            detail = f"{fields['alternative_count'][:20]!r} is not a whole number"
            raise _ErrorResponse(
                error_response(
                    400,
                    f"alternative_count: {detail}",
                    reason="ALTERNATIVE_COUNT_OUT_OF_RANGE",
                    violations=[
                        FieldViolation(
                            field="alternative_count", reason="ALTERNATIVE_COUNT_OUT_OF_RANGE", description=detail
                        )
                    ],
                )
            ) from error
    return grpc_request


class _SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in _SECURITY_HEADERS.items()]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _BodyLimit:
    """Refuses a body that is too long by its header, and stops reading one without that header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        num_read = 0

        async def receive_limited() -> AsgiMessage:
            nonlocal num_read
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > BODY_LIMIT_BYTES:
                raise HTTPException(413, _BODY_TOO_LARGE)
            return message

        if length.isdigit() and int(length) > BODY_LIMIT_BYTES:
            refused = error_response(413, _BODY_TOO_LARGE, reason="HTTP_413")
            return await refused(scope, receive, send)
        await self._app(scope, receive_limited, send)


_BODY_TOO_LARGE = f"a body may hold {BODY_LIMIT_BYTES >> 20} MiB; send fewer or smaller photos"
