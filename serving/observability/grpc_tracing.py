"""A server span for each gRPC call of the gateway, as a child of the caller's span."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.observability.tracing import SCOPE

__all__ = ["TracingInterceptor"]

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_SERVER_ERROR_CODES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that make a server span an error, by OpenTelemetry's conventions for gRPC; the others are the caller's."""


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """Must be the first interceptor, so that calls which others refuse have spans too.

    Calls of other services, such as health checks, have none.
    """

    def __init__(self, service: str, *, tracer_provider: trace.TracerProvider | None = None) -> None:
        """Args:
        service: full name of the service whose calls are traced.
        tracer_provider: the provider of this process by default.
        """
        self._prefix = f"/{service}/"
        self._tracer_provider = tracer_provider

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        kind = next(kind for kind in _KINDS if getattr(handler, kind))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        open_span = partial(_call_span, self._tracer_provider, method)
        traced = _wrap_handler(getattr(handler, kind), open_span)
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            traced, handler.request_deserializer, handler.response_serializer
        )
        return wrapped


def _wrap_handler(
    handler: Callable[..., Any], open_span: Callable[..., AbstractContextManager[None]]
) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(handler):

        async def handle_stream(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[Any]:
            with open_span(context):
                async for response in handler(request, context):
                    yield response

        return handle_stream

    async def handle(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        with open_span(context):
            return await handler(request, context)

    return handle


@contextmanager
def _call_span(
    tracer_provider: trace.TracerProvider | None, method: str, context: "grpc.aio.ServicerContext[Any, Any]"
) -> Iterator[None]:
    name = method.strip("/")
    carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    with trace.get_tracer(SCOPE, tracer_provider=tracer_provider).start_as_current_span(
        name,
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system.name": "grpc", "rpc.method": name},
        # A refusal is an exception here, and most refusals are the caller's fault.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        code = grpc.StatusCode.UNKNOWN
        try:
            yield
            code = grpc.StatusCode.OK
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            code = _get_status_code(context) or code
            raise
        finally:
            span.set_attribute("rpc.response.status_code", code.name)
            if code in _SERVER_ERROR_CODES:
                span.set_attribute("error.type", code.name)
                span.set_status(trace.StatusCode.ERROR)


def _get_status_code(context: "grpc.aio.ServicerContext[Any, Any]") -> grpc.StatusCode | None:
    """Return the status code that the call was aborted with, None if it was not."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if code and known.value[0] == code), None)
