"""One trace from a caller over the gateway to Triton, as a collector sees it."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys

import grpc
import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from tests.conftest import ROOT
from tests.support.otlp_collector import Collector
from tests.support.serving_process import PHOTO
from tests.support.waiting import wait_until

CALL = "listing.vision.v1.ListingVisionService/ClassifyListing"
TO_TRITON = "inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def collector():
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("LISTING_VISION_LOG_FORMAT", "json")
        yield


@pytest.fixture(scope="module")
def traced_gateway(bundle, start_serving, triton_installation, collector, environment, tmp_path_factory):
    """The default: photos are decoded in Triton."""
    log = tmp_path_factory.mktemp("traced") / "serve.log"
    return start_serving(bundle.folder, log, "--otlp-endpoint", collector.endpoint)


@pytest.fixture(scope="module")
def decoding_gateway(bundle, start_serving, traced_gateway, collector, environment, tmp_path_factory):
    """Another gateway before the same Triton, which decodes itself and traces nobody of its own accord."""
    triton = re.search(r'answers at ([^\s",]+)', traced_gateway.log).group(1)
    options = ("--triton", triton, "--decode-in", "gateway", "--trace-ratio", "0")
    log = tmp_path_factory.mktemp("decoding") / "serve.log"
    return start_serving(bundle.folder, log, *options, "--otlp-endpoint", collector.endpoint)


def classify_traced(served, photos=(PHOTO,), parent: str | None = None) -> grpc.StatusCode:
    headers = [("traceparent", parent)] if parent else []
    request = pb.ClassifyListingRequest(photos=[pb.Photo(content=photo) for photo in photos])
    with grpc.insecure_channel(served.address) as channel:
        try:
            pb_grpc.ListingVisionServiceStub(channel).ClassifyListing(request, timeout=20, metadata=headers)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def create_parent(sampled: bool) -> tuple[str, str, str]:
    """A trace id, a span id, and the header of both."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-{int(sampled):02}"


def group_by_name(spans):
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def read_log_lines(served, trace_id: str) -> list[dict]:
    def find_lines():
        lines = [json.loads(line) for line in served.log.splitlines()]
        return [line for line in lines if line.get("trace_id") == trace_id]

    wait_until(find_lines, f"a log line of {trace_id}")
    return find_lines()


def select_client_spans(spans):
    return [span for span in spans if span.service == "listing-vision-classify"]


def test_one_trace_from_the_client_library_over_the_gateway_to_triton(traced_gateway, collector, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(PHOTO)
    command = [sys.executable, "-m", "listing_vision", "classify", str(photo), "--server", traced_gateway.address]
    asked = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
    done = subprocess.run(command, cwd=ROOT, env=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [client] = select_client_spans(collector.wait_until(lambda spans: select_client_spans(spans), "client"))
    assert (client.name, client.kind, client.parent_id) == (CALL, "SPAN_KIND_CLIENT", "")
    spans = collector.wait_for_trace(client.trace_id, CALL, CALL, "decision", TO_TRITON)
    [call] = [span for span in spans if span.parent_id == client.span_id]
    assert (call.name, call.kind, call.service) == (CALL, "SPAN_KIND_SERVER", "listing-vision-gateway")
    assert call.attributes["listing_vision.result"] == "OK"
    assert int(call.attributes["listing_vision.photos"]) == 1
    children = group_by_name([span for span in spans if span.parent_id == call.span_id])
    # A request to Triton may be shared by listings, so it is no part of one listing's stage.
    assert set(children) == {"queue", "model", "decision", TO_TRITON}
    to_triton = children[TO_TRITON]
    assert to_triton.kind == "SPAN_KIND_CLIENT"
    # Triton 2.51 crashes while it traces.
    assert [span for span in spans if span.parent_id == to_triton.span_id] == []
    assert call.format == client.format == "protobuf"
    assert len(spans) == 2 + 3 + 1
    [line] = read_log_lines(traced_gateway, client.trace_id)
    assert "OK" in line["message"]
    assert line["span_id"] == call.span_id


def test_a_gateway_that_decodes_shows_it_and_follows_its_caller(decoding_gateway, collector):
    trace_id, span_id, header = create_parent(sampled=True)
    assert classify_traced(decoding_gateway, parent=header) == grpc.StatusCode.OK
    spans = group_by_name(collector.wait_for_trace(trace_id, CALL, TO_TRITON))
    assert spans[CALL].parent_id == span_id
    children = {span.name for span in spans.values() if span.parent_id == spans[CALL].span_id}
    assert children == {"queue", "decode", "model", "decision", TO_TRITON}
    assert set(spans) == {CALL, *children}


def test_who_is_not_to_be_traced_is_not_and_is_found_in_the_log(traced_gateway, decoding_gateway, collector):
    unsampled, _, header = create_parent(sampled=False)
    assert classify_traced(traced_gateway, parent=header) == grpc.StatusCode.OK
    assert classify_traced(decoding_gateway) == grpc.StatusCode.OK  # its ratio is 0
    last, _, header = create_parent(sampled=True)
    assert classify_traced(traced_gateway, parent=header) == grpc.StatusCode.OK
    collector.wait_for_trace(last, CALL)
    assert {span.trace_id for span in collector.spans} & {unsampled} == set()
    assert read_log_lines(traced_gateway, unsampled)
    calls = [
        line
        for line in map(json.loads, decoding_gateway.log.splitlines())
        if line["logger"] == "serving.gateway.service"
    ]
    ids = {line["trace_id"] for line in calls}
    assert len(ids) == len(calls) >= 2
    assert len(ids & {span.trace_id for span in collector.spans}) == len(calls) - 1


def test_a_refusal_is_the_callers_doing_and_names_its_reason(traced_gateway, collector):
    trace_id, _, header = create_parent(sampled=True)
    assert classify_traced(traced_gateway, [], header) == grpc.StatusCode.INVALID_ARGUMENT
    [span] = collector.wait_for_trace(trace_id, CALL)
    assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert span.attributes["listing_vision.result"] == "NO_PHOTOS"
    assert not span.is_error


def test_a_stream_is_one_span_and_each_of_its_listings_one_below(traced_gateway, collector):
    trace_id, _, header = create_parent(sampled=True)
    requests = [
        pb.ClassifyListingsRequest(sequence=n, request=pb.ClassifyListingRequest(photos=[pb.Photo(content=PHOTO)]))
        for n in range(2)
    ]
    with grpc.insecure_channel(traced_gateway.address) as channel:
        stub = pb_grpc.ListingVisionServiceStub(channel)
        answers = list(stub.ClassifyListings(iter(requests), timeout=20, metadata=[("traceparent", header)]))
    assert len(answers) == 2
    stream = f"{CALL}s"
    spans = collector.wait_for_trace(trace_id, stream, "listing", "listing", "decision", "decision")
    [call] = [span for span in spans if span.name == stream]
    listings = [span for span in spans if span.name == "listing"]
    assert {span.parent_id for span in listings} == {call.span_id}
    assert {span.attributes["listing_vision.result"] for span in listings} == {"OK"}
    assert {span.parent_id for span in spans if span.name == "decision"} == {span.span_id for span in listings}


def test_a_headers_nonsense_is_no_parent(traced_gateway, collector):
    trace_id = secrets.token_hex(16)
    assert classify_traced(traced_gateway, parent=f"00-{trace_id}-nonsense-01") == grpc.StatusCode.OK
    assert trace_id not in {span.trace_id for span in collector.spans}


def test_a_collector_that_never_answers_holds_up_no_call(bundle, start_serving, environment, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--otlp-endpoint", endpoint)
        # Far more spans than there is room for.
        assert {classify_traced(served) for _ in range(20)} == {grpc.StatusCode.OK}
        connection, _ = silent.accept()  # somebody did try
        with connection:
            assert served.stop() == 0
    assert "stopped" in served.log.splitlines()[-1]
