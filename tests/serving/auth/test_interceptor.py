"""Tokens and quotas over real connections."""

import asyncio
import json
from types import SimpleNamespace

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from listing_vision_client import Access
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.auth.interceptor import CALLER, AuthInterceptor
from serving.auth.quota import PhotoQuota
from tests.support.callers import PHOTO, classify, run_secured_gateway, write_token_file
from tests.support.waiting import wait_until

CLASSIFY_METHOD = "/listing.vision.v1.ListingVisionService/ClassifyListing"


def test_whoever_has_no_token_learns_nothing_and_sends_no_photo(bundle, tmp_path):
    tokens = write_token_file(tmp_path / "tokens", upload="secret-1", backfill="secret-2")

    async def call():
        async with run_secured_gateway(bundle, tokens=tokens) as address:
            found = [
                await classify(address, Access(token="secret-1")),
                await classify(address, Access(token="secret-2")),
                await classify(address, Access(token="secret-3")),
                await classify(address, Access()),
            ]
            async with grpc.aio.insecure_channel(address) as channel:
                # The call is refused although no message was sent.
                unread = channel.stream_unary(CLASSIFY_METHOD)(timeout=10)
                found.append((await unread.code()).name)
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                found.append(health.status)
            return found

    *good, wrong, none, unread, health = asyncio.run(call())
    assert good == ["OK", "OK"]
    assert wrong == none == "UNAUTHENTICATED UNAUTHENTICATED unauthenticated"
    assert unread == "UNAUTHENTICATED"
    assert health == health_pb2.HealthCheckResponse.SERVING


def test_verifiers_are_tried_in_order_and_the_first_that_knows_the_token_names_the_caller():
    class KnownTokens(dict):
        async def identify_caller(self, token):
            return self.get(token)

    interceptor = AuthInterceptor(KnownTokens(a="first"), KnownTokens(a="second", b="other"))

    async def identify(*metadata):
        details = SimpleNamespace(method=CLASSIFY_METHOD, invocation_metadata=metadata)

        async def name_caller(_):
            return CALLER.get()

        found = await interceptor.intercept_service(name_caller, details)
        return found if isinstance(found, str) else None

    async def call():
        return [
            await identify(("authorization", "Bearer a")),
            await identify(("x-request-id", "1"), ("authorization", "bearer  b ")),
            await identify(("authorization", "Bearer c")),
            await identify(("authorization", "Basic a")),
            await identify(),
        ]

    assert asyncio.run(call()) == ["first", "other", None, None, None]


def test_each_caller_has_a_quota_of_its_own(bundle, tmp_path, monkeypatch):
    tokens = write_token_file(tmp_path / "tokens", upload="secret-1", backfill="secret-2")
    # A burst of five photos that takes hours to fill again.
    monkeypatch.setattr(PhotoQuota, "BURST_S", 50_000.0)

    async def call():
        async with run_secured_gateway(bundle, tokens=tokens, quota_photos_per_s=1e-4) as address:
            one, two = Access(token="secret-1"), Access(token="secret-2")
            return [
                await classify(address, one, num_photos=3),
                await classify(address, one, num_photos=2),
                await classify(address, one),
                await classify(address, two, num_photos=5),
                await classify(address, two),
            ]

    first, second, third, other, last = asyncio.run(call())
    assert (first, second, other) == ("OK",) * 3
    assert third.startswith("RESOURCE_EXHAUSTED QUOTA_EXCEEDED caller 'upload' may send 0.0001 photos a second")
    assert last.startswith("RESOURCE_EXHAUSTED QUOTA_EXCEEDED caller 'backfill'")


def test_logs_as_json_name_request_and_caller(bundle, start_serving, tmp_path, monkeypatch):
    monkeypatch.setenv("LISTING_VISION_LOG_FORMAT", "json")
    tokens = write_token_file(tmp_path / "tokens", upload="secret-1")
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--tokens", str(tokens))
    request = pb.ClassifyListingRequest(listing_id="li\n42", photos=[pb.Photo(content=PHOTO)])
    headers = [("authorization", "Bearer secret-1"), ("x-request-id", "request-7")]
    with grpc.insecure_channel(served.address) as channel:
        pb_grpc.ListingVisionServiceStub(channel).ClassifyListing(request, timeout=20, metadata=headers)
    wait_until(lambda: "request-7" in served.log, "the call is logged")
    lines = [json.loads(line) for line in served.log.splitlines()]
    [line] = [line for line in lines if line.get("request_id")]
    assert (line["request_id"], line["caller"], line["level"]) == ("request-7", "upload", "INFO")
    assert "OK" in line["message"]
    assert set(line) == {"time", "level", "logger", "message", "request_id", "caller"}
    assert "secret-1" not in served.log
