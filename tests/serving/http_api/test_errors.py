import json

import grpc
import pytest

from serving.http_api.errors import error_response, from_grpc_error


def grpc_error(code, details=None):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


@pytest.mark.parametrize(
    ("code", "http_status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.UNAUTHENTICATED, 401),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.UNIMPLEMENTED, 501),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
        (grpc.StatusCode.DATA_LOSS, 500),
    ],
)
def test_codes_are_those_of_google_rpc(code, http_status):
    response = from_grpc_error(grpc_error(code, "some socket"))
    error = json.loads(response.body)["error"]
    assert (response.status_code, error["code"], error["status"]) == (http_status, http_status, code.name)
    assert ("socket" in error["message"]) == (code == grpc.StatusCode.UNIMPLEMENTED)


def test_a_delay_and_a_challenge_are_headers_too():
    response = error_response(429, "busy", reason="TOO_BUSY", retry_delay_s=1.2)
    assert response.headers["Retry-After"] == "2"
    assert json.loads(response.body)["error"]["retryDelayMs"] == 1200
    assert error_response(401, "no", reason="UNAUTHENTICATED").headers["WWW-Authenticate"] == "Bearer"
