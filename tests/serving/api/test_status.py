import grpc
import pytest

from serving.api.status import Refusal


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("NO_PHOTOS", grpc.StatusCode.INVALID_ARGUMENT),
        ("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED),
        ("TOO_BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("MODEL_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE),
        ("MODEL_BROKEN", grpc.StatusCode.INTERNAL),
        ("DEADLINE_TOO_SHORT", grpc.StatusCode.DEADLINE_EXCEEDED),
        ("OUTCOMES_NOT_RECORDED", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_each_reason_has_one_code(reason, code):
    refusal = Refusal(reason=reason, message="what; which value; what to do")
    assert refusal.code == code
    assert str(refusal) == refusal.message


def test_a_reason_without_a_code_is_a_bug():
    with pytest.raises(KeyError):
        Refusal(reason="NOWHERE", message="x").code  # noqa: B018
