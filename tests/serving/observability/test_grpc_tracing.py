"""Names, parents, codes and errors of call spans, on a real server."""

import asyncio

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import rpc_attributes
from opentelemetry.semconv.attributes import error_attributes

from serving.observability.grpc_tracing import TracingInterceptor

SERVICE = "listing.vision.v1.ListingVisionService"


class RefuseInterceptor(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, handler_call_details):
        async def refuse(request, context):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

        if handler_call_details.method.endswith("/Refused"):
            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


async def respond(request, context):
    return b"response"


async def abort_as_invalid(request, context):
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "NO_PHOTOS")


async def abort_as_unavailable(request, context):
    await context.abort(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")


async def raise_bug(request, context):
    raise ZeroDivisionError("a bug")


async def hang(request, context):
    await asyncio.Event().wait()


async def echo(requests, context):
    async for request in requests:
        yield request


HANDLERS = {
    "Ok": respond,
    "Invalid": abort_as_invalid,
    "Unavailable": abort_as_unavailable,
    "Bug": raise_bug,
    "Hang": hang,
    "Refused": respond,
}


@pytest.fixture
def record_span():
    """Call a method; returns its span, None if there is none."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def call(service, method, metadata, timeout_s):
        handlers = {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in HANDLERS.items()}
        handlers["Stream"] = grpc.stream_stream_rpc_method_handler(echo)
        tracing = TracingInterceptor(SERVICE, tracer_provider=provider)
        server = grpc.aio.server(interceptors=[tracing, RefuseInterceptor()])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                if method == "Stream":
                    requests = iter([b"1", b"2"])
                    stream = channel.stream_stream(f"/{service}/{method}")(requests, metadata=metadata)
                    assert [response async for response in stream] == [b"1", b"2"]
                else:
                    unary = channel.unary_unary(f"/{service}/{method}")
                    await unary(b"", metadata=metadata, timeout=timeout_s)
            except grpc.RpcError:
                pass
        await server.stop(10)

    def run(method, *, service=SERVICE, metadata=(), timeout_s=10.0):
        exporter.clear()
        asyncio.run(call(service, method, metadata, timeout_s))
        return next(iter(exporter.get_finished_spans()), None)

    return run


@pytest.mark.parametrize(
    ("method", "code", "is_error"),
    [
        ("Ok", grpc.StatusCode.OK, False),
        ("Stream", grpc.StatusCode.OK, False),
        ("Invalid", grpc.StatusCode.INVALID_ARGUMENT, False),
        ("Refused", grpc.StatusCode.UNAUTHENTICATED, False),
        ("Unavailable", grpc.StatusCode.UNAVAILABLE, True),
        ("Bug", grpc.StatusCode.UNKNOWN, True),
    ],
)
def test_a_span_has_the_code_of_its_call_and_is_an_error_if_the_server_failed(record_span, method, code, is_error):
    span = record_span(method)
    assert (span.name, span.kind.name, span.parent) == (f"{SERVICE}/{method}", "SERVER", None)
    # The names of OpenTelemetry's conventions for RPC since 1.39.
    assert dict(span.attributes) == {
        rpc_attributes.RPC_SYSTEM_NAME: "grpc",
        rpc_attributes.RPC_METHOD: f"{SERVICE}/{method}",
        rpc_attributes.RPC_RESPONSE_STATUS_CODE: code.name,
        **({error_attributes.ERROR_TYPE: code.name} if is_error else {}),
    }
    assert (not span.status.is_ok) == is_error
    assert not span.events  # no stack trace for a refusal


def test_a_call_that_its_caller_gives_up_is_cancelled(record_span):
    span = record_span("Hang", timeout_s=0.3)
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"
    assert span.status.is_ok


def test_a_span_continues_the_callers_trace(record_span):
    span = record_span("Ok", metadata=[("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01")])
    assert (span.context.trace_id, span.parent.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))


def test_other_services_have_no_spans(record_span):
    assert record_span("Ok", service="grpc.health.v1.Health") is None
