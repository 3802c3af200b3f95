"""Options of traces, and spans where nothing is traced."""

import asyncio
import secrets
import subprocess
import sys

import pytest

from serving.observability import tracing
from tests.conftest import ROOT
from vision.errors import ListingVisionError


def test_the_client_passes_on_the_trace_that_it_is_called_in():
    from opentelemetry import trace

    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    header = f"00-{trace_id}-{span_id}-01"
    context = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert tracing.trace_headers() == (("traceparent", header),)
    assert tracing.trace_headers() == ()


def test_nothing_of_it_is_imported_unless_asked_for():
    code = (
        "import sys, listing_vision.cli, listing_vision_client; "
        "assert not {'opentelemetry', 'jwt', 'cryptography'} & {name.partition('.')[0] for name in sys.modules}; "
        "import serving.supervisor.gateway_worker, serving.inference.triton; assert 'opentelemetry' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_missing_packages_are_named_and_what_is_meant_for_others_is_left_alone(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert tracing.read_standard_endpoint() == "http://collector:4318"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert tracing.read_standard_endpoint() is None
    assert "is for grpc, and traces go over http/protobuf" in caplog.text
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing.read_standard_endpoint() is None
    with pytest.raises(ListingVisionError, match=r"install listing-vision\[traces\]"):
        tracing.require_packages()


@pytest.mark.parametrize("options", [{"endpoint": "collector:4318"}, {"endpoint": "http://c", "ratio": 1.5}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ListingVisionError, match=r"--otlp-endpoint|--trace-ratio"):
        tracing.TraceOptions(**options)


def test_an_endpoint_may_end_with_a_slash():
    assert tracing.TraceOptions(endpoint="http://c:4318/").url == "http://c:4318/v1/traces"


def test_a_part_outside_of_any_traced_call_is_none():
    from opentelemetry import trace

    async def parts():
        with tracing.span("queue"), tracing.sampled_client_span("/a.B/C") as headers:
            return headers, trace.get_current_span().get_span_context().is_valid

    assert asyncio.run(parts()) == ((), False)
