import json
import logging

import grpc
import pytest
from google.protobuf import any_pb2

from listing_vision_client.errors import FieldViolation
from listing_vision_client.protocol import reasons_pb2
from serving.api.status import CODES, Refusal, build_status
from serving.http_api.errors import HTTP_ERRORS, HttpRefusal, error_response, from_grpc_error, get_statuses


def create_grpc_error(code, details=None, refusal=None):
    trailers = grpc.aio.Metadata()
    if refusal:
        trailers.add("grpc-status-details-bin", build_status(refusal).SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=details)


def read(response):
    return json.loads(response.body)["error"]


def test_every_reason_is_one_of_the_contract():
    assert set(HTTP_ERRORS) | set(CODES) <= set(reasons_pb2.ErrorReason.keys())


@pytest.mark.parametrize(
    ("code", "http_status", "reason"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "TOO_BUSY"),
        (grpc.StatusCode.UNAVAILABLE, 503, "MODEL_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_TOO_SHORT"),
        (grpc.StatusCode.DATA_LOSS, 500, "INTERNAL"),
        (grpc.StatusCode.UNIMPLEMENTED, 500, "INTERNAL"),
    ],
)
def test_errors_of_grpc_itself_have_reasons_of_the_contract(code, http_status, reason):
    response = from_grpc_error(create_grpc_error(code, "some socket"))
    error = read(response)
    assert (response.status_code, error["code"], error["reason"]) == (http_status, http_status, reason)
    assert "socket" not in error["message"]


def test_details_of_the_service_are_passed_on():
    violation = FieldViolation(field="photo.language_code", reason="LANGUAGE_CODE_INVALID", description="no tag")
    refusal = Refusal(reason="LANGUAGE_CODE_INVALID", message="no tag", violations=[violation], metadata={"limit": 5})
    response = from_grpc_error(create_grpc_error(grpc.StatusCode.INVALID_ARGUMENT, "no tag", refusal))
    assert read(response) == {
        "code": 400,
        "status": "INVALID_ARGUMENT",
        "reason": "LANGUAGE_CODE_INVALID",
        "message": "no tag",
        "violations": [
            {"field": "photo.languageCode", "reason": "LANGUAGE_CODE_INVALID", "description": "no tag"},
        ],
        "metadata": {"limit": "5"},
    }


def test_a_request_that_is_too_large_is_not_one_to_retry():
    refusal = Refusal(reason="REQUEST_TOO_LARGE", message="too large", metadata={"limit": 5})
    response = from_grpc_error(create_grpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", refusal))
    assert (response.status_code, read(response)["metadata"]) == (413, {"limit": "5"})
    assert "Retry-After" not in response.headers


def test_a_reason_of_a_newer_gateway_has_the_status_of_its_code():
    status = build_status(Refusal(reason="TOO_BUSY", message="m"))
    status.details[0].CopyFrom(any_pb2.Any(type_url=status.details[0].type_url, value=b"\n\x05NEWER"))
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailers, details="m")
    assert (from_grpc_error(error).status_code, read(from_grpc_error(error))["reason"]) == (404, "NEWER")


def test_a_delay_and_a_challenge_are_headers_too():
    response = error_response("TOO_BUSY", "busy", retry_delay_s=1.2)
    assert (response.status_code, response.headers["Retry-After"], read(response)["retryDelayMs"]) == (429, "2", 1200)
    assert error_response("SHUTTING_DOWN", "stops").headers["Retry-After"] == "1"
    assert error_response("UNAUTHENTICATED", "no").headers["WWW-Authenticate"] == "Bearer"


def test_a_refusal_is_one_line_of_the_log(caplog):
    with caplog.at_level(logging.INFO):
        HttpRefusal(reason="BODY_UNREADABLE", message="a\nfaked line").to_response()
    assert caplog.messages == ["refused: BODY_UNREADABLE: 'a\\nfaked line'"]


def test_a_refusal_is_a_response():
    response = HttpRefusal(reason="METHOD_NOT_ALLOWED", message="no", headers={"Allow": "GET"}).to_response()
    assert (response.status_code, response.headers["Allow"]) == (405, "GET")
    assert get_statuses("ROUTE_NOT_FOUND") == (404, grpc.StatusCode.NOT_FOUND)
