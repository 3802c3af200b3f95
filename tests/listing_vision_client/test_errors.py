import grpc
import pytest

from listing_vision_client.errors import CallFailed, ErrorDetails, choose_retry_delay_s, convert_status, parse_status
from serving.api.status import Refusal, build_status

BUSY = CallFailed(
    code=grpc.StatusCode.RESOURCE_EXHAUSTED, message="m", details=ErrorDetails(reason="TOO_BUSY", retry_delay_s=1.0)
)


def test_a_status_is_a_failure_with_its_code_reason_and_delay():
    status = build_status(Refusal(reason="QUOTA_EXCEEDED", message="slower", retry_after_s=0.25))
    failed = convert_status(status)
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert (failed.retry_delay_s, failed.details) == (0.25, parse_status(status))


def test_a_busy_call_is_repeated_after_its_delay_and_a_little_more():
    delay_s = choose_retry_delay_s(BUSY, num_retries_left=1, time_left_s=10)
    assert 1.0 <= delay_s <= 1.2


@pytest.mark.parametrize(
    ("failed", "num_retries_left", "time_left_s"),
    [
        (BUSY, 0, 10),
        (BUSY, 1, 0.9),
        (CallFailed(code=BUSY.code, message="m", details=ErrorDetails(reason="REQUEST_TOO_LARGE")), 1, 10),
        (CallFailed(code=grpc.StatusCode.UNAVAILABLE, message="m", details=BUSY.details), 1, 10),
    ],
    ids=["not asked for", "no time", "no delay", "gRPC repeats it"],
)
def test_what_is_not_repeated(failed, num_retries_left, time_left_s):
    assert choose_retry_delay_s(failed, num_retries_left=num_retries_left, time_left_s=time_left_s) is None
