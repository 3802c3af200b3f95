"""Requests that no client sends: each gets an error of the contract as JSON, never a 500."""

import asyncio
import json

import grpc
from hypothesis import given
from hypothesis import strategies as st

from listing_vision_client.protocol import reasons_pb2
from serving.http_api.app import create_app

HEADER_VALUES = [
    b"", b"localhost", b"[::1]:80", b"[::1", b"]:", b":", b"\xe9\xff", b"1e400", b"12", b"cross-site", b"http://localhost",
    b"gzip", b"application/json", b"application/json; charset=\xff", b"multipart/form-data; boundary=b",
    b'multipart/form-data; boundary="', b"multipart/form-data; boundary*=utf-8''b",
    b"multipart/form-data; boundary*0=b",
]  # fmt: skip
HEADER_NAMES = [
    b"host", b"origin", b"content-type", b"x-timeout-ms", b"x-request-id", b"authorization", b"sec-fetch-site",
    b"transfer-encoding", b"content-encoding",
]  # fmt: skip
REASONS = set(reasons_pb2.ErrorReason.keys())
BODIES = [
    b"", b"{}", b"[", b"NaN", b"\xff", b'{"\\ud800":1}', b'{"listingId":"\\udfff"}', b'{"photos":{"a":1e999}}',
    b'{"photos":[{"content":"\\ud800"}]}', b'{"photos":[{"content":{}}]}', b'{"alternativeCount":1e999}',
    b'{"alternativeCount":""}', b'{"brand":{"brandId":"a","noBrand":true}}', b'{"categoryTreatment":99}',
    b"--b\r\n\r\n\r\n--b--", b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--',
    b"--b\r\nContent-Disposition: =?x?q?a?=; name*0=a; name*1*=%ff\r\n\r\nx\r\n--b--",
]  # fmt: skip
PATHS = ["/v1/listings:classify", "/v1/photos:explain", "/v1/outcomes", "/v1/model", "/v1/taxonomy", "//", "/\ufffd"]
QUERIES = [b"", b"taxonomyVersion=%ff", b"languageCode", b"&&&=", b"taxonomyVersion=%ED%A0%80"]


class NoUpstream:
    async def call(self, method, request, *, timeout_s, metadata):
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


APP = create_app(NoUpstream(), allowed_hosts=frozenset())


async def call(body, **scope):
    """Status and body of a response."""
    sent, received = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return received.pop() if received else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await APP({"type": "http", "client": ("192.0.2.1", 1), **scope}, receive, send)
    return sent[0]["status"], sent[1]["body"]


@given(
    method=st.sampled_from(["POST", "POST", "GET", "PUT"]),
    path=st.sampled_from(PATHS),
    query=st.sampled_from(QUERIES),
    content_type=st.sampled_from([b"application/json", b"multipart/form-data; boundary=b"]),
    headers=st.lists(st.tuples(st.sampled_from(HEADER_NAMES), st.sampled_from(HEADER_VALUES)), max_size=2),
    body=st.sampled_from(BODIES) | st.binary(max_size=50),
)
def test_each_gets_an_error_of_the_contract(method, path, query, content_type, headers, body):
    headers = [(b"host", b"localhost"), (b"content-type", content_type), *headers]
    status, content = asyncio.run(call(body, method=method, path=path, query_string=query, headers=headers))
    error = json.loads(content)["error"]
    assert (status != 500, error["code"]) == (True, status)
    assert error["reason"] in REASONS
