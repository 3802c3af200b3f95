"""The HTTP application: each route converts a request to the gRPC message and the response to proto3 JSON."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from importlib import resources
from pathlib import PurePath
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.limits import DEFAULT_TIMEOUT_S, HTTP_PEER_HEADER, MAX_TIMEOUT_S
from serving.http_api.body_limits import BodyLimits
from serving.http_api.browser_guard import BrowserGuard, SecurityHeaders
from serving.http_api.errors import HttpRefusal, error_response, from_grpc_error
from serving.http_api.form_requests import parse_form
from serving.http_api.json_requests import parse_json, parse_query
from serving.http_api.preview import PreviewMaker
from serving.http_api.routes import FORM_METHOD, HttpRule, Route, list_routes
from serving.http_api.upstream import Upstream

__all__ = ["create_app"]

_FORWARDED_HEADERS = ("authorization", "x-request-id", "traceparent", "tracestate")
_JSON, _FORM = "application/json", "multipart/form-data"
_PAGE = "page.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
}
_PREVIEW_RULE = HttpRule("POST", "/page/preview")
"""For the page alone: a photo's bytes to a JPEG. Not part of the contract."""
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    upstream: Upstream,
    *,
    allowed_hosts: frozenset[str] | None = None,
    has_tls: bool = False,
) -> Starlette:
    """Create the application.

    Args:
        upstream: the connection to the service.
        allowed_hosts: see `serving.http_api.browser_guard.list_allowed_hosts`.
        has_tls: whether browsers may be told to use nothing but HTTPS.
    """
    previews = PreviewMaker()

    @contextlib.asynccontextmanager
    async def close_previews(_: Starlette) -> AsyncIterator[None]:
        yield
        await previews.close()

    routes = [
        *(_create_route(route.rule, _create_endpoint(route, upstream)) for route in list_routes()),
        _create_route(HttpRule("GET", "/openapi.json"), _create_file_endpoint("openapi.json", _JSON)),
        _create_route(_PREVIEW_RULE, _create_preview_endpoint(upstream, previews)),
        *(_create_page_route(file.name) for file in (resources.files("serving.http_api") / "page").iterdir()),
    ]
    middleware = [
        Middleware(SecurityHeaders, has_tls=has_tls),
        Middleware(BrowserGuard, allowed_hosts=allowed_hosts),
        Middleware(BodyLimits),
    ]
    handlers = {
        HTTPException: _handle_http_exception,
        HttpRefusal: _handle_refusal,
        ClientDisconnect: _handle_disconnect,
        Exception: _handle_exception,
    }
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=close_previews)
    app.router.redirect_slashes = False
    return app


def _create_route(rule: HttpRule, endpoint: Endpoint) -> routing.Route:
    return routing.Route(rule.path, endpoint, methods=[rule.verb])


def _create_file_endpoint(name: str, media_type: str) -> Endpoint:
    content = (resources.files("serving.http_api") / name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return send


def _create_page_route(name: str) -> routing.Route:
    endpoint = _create_file_endpoint(f"page/{name}", _MEDIA_TYPES[PurePath(name).suffix])
    return _create_route(HttpRule("GET", "/" if name == _PAGE else f"/{name}"), endpoint)


def _create_preview_endpoint(upstream: Upstream, previews: PreviewMaker) -> Endpoint:
    async def send(request: Request) -> Response:
        try:  # only for callers whom the gateway knows
            metadata = _list_forwarded_headers(request)
            await upstream.call("GetModel", pb.GetModelRequest(), timeout_s=DEFAULT_TIMEOUT_S, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return from_grpc_error(error)
        return Response(await previews.create(await request.body()), media_type="image/jpeg")

    return send


def _create_endpoint(route: Route, upstream: Upstream) -> Endpoint:
    async def call(request: Request) -> Response:
        timeout_s = _read_timeout_s(request)
        message = route.request_class()
        if route.rule.verb == "GET":
            parse_query(request.query_params.multi_items(), message)
        else:
            await _parse_body(request, message, takes_form=route.method == FORM_METHOD)
        metadata = _list_forwarded_headers(request)
        try:
            response = await _await_unless_disconnected(
                upstream.call(route.method, message, timeout_s=timeout_s, metadata=metadata), request
            )
        except grpc.aio.AioRpcError as error:
            return from_grpc_error(error)
        return JSONResponse(json_format.MessageToDict(response, always_print_fields_with_no_presence=True))

    return call


async def _await_unless_disconnected(call: Coroutine[Any, Any, Any], request: Request) -> Any:
    """Return the result of a call, which is cancelled when the caller of the request goes.

    Raises:
        ClientDisconnect: the caller has gone.
    """
    calling = asyncio.create_task(call)
    watching = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((calling, watching), return_when=asyncio.FIRST_COMPLETED)
        if not calling.done():
            raise ClientDisconnect
        return calling.result()
    finally:
        calling.cancel()
        watching.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _parse_body(request: Request, message: Message, *, takes_form: bool) -> None:
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    accepted = (_JSON, _FORM) if takes_form else (_JSON,)
    charset = re.search(r";\s*charset=\"?([^\s;\"]*)", content_type, re.IGNORECASE)
    is_utf8 = charset is None or charset.group(1).lower() in ("utf-8", "utf8", "us-ascii")
    encoding = request.headers.get("content-encoding", "identity")
    if media_type not in accepted or not is_utf8 or encoding.lower() != "identity":
        raise HttpRefusal(
            reason="CONTENT_TYPE_UNSUPPORTED",
            message=f"the content type {content_type[:100]!r} with the encoding {encoding[:20]!r} is not taken; send "
            f"{' or '.join(accepted)} in UTF-8, not compressed",
            headers={"Accept-Post": ", ".join(accepted), "Accept-Encoding": "identity"},
        )
    body = await request.body()
    if media_type == _FORM:
        parse_form(body, content_type, message)
    else:
        parse_json(body, message)


def _list_forwarded_headers(request: Request) -> list[tuple[str, str]]:
    """Return the headers that the gateway reads; gRPC takes printable ASCII only, and others are dropped."""
    found = ((name, request.headers.get(name)) for name in _FORWARDED_HEADERS)
    headers = [(name, value) for name, value in found if value and re.fullmatch(r"[ -~]+", value)]
    return [*headers, (HTTP_PEER_HEADER, request.client.host if request.client else "")]


def _read_timeout_s(request: Request) -> float:
    text = request.headers.get("x-timeout-ms")
    if text is None:
        return DEFAULT_TIMEOUT_S
    limit_ms = round(1000 * MAX_TIMEOUT_S)
    timeout_ms = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else 0.0
    if not 0 < timeout_ms <= limit_ms:
        raise HttpRefusal(
            reason="TIMEOUT_OUT_OF_RANGE",
            message=f"x-timeout-ms: {text[:20]!r} is not a number of milliseconds in (0, {limit_ms}]",
            metadata={"limit": limit_ms},
        )
    return timeout_ms / 1000


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """Respond to what matches no route: the framework raises 404 and 405 alone."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        message = f"{request.method[:20]} is not a method of this route; use {allowed}"
        return error_response("METHOD_NOT_ALLOWED", message, headers={"Allow": allowed})
    return error_response("ROUTE_NOT_FOUND", f"no route {request.scope['path'][:100]!r}; see /openapi.json")


async def _handle_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpRefusal)
    return error.to_response()


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # to a caller who has gone


async def _handle_exception(request: Request, error: Exception) -> Response:
    return error_response("INTERNAL", "the service failed; report it to the operator")
