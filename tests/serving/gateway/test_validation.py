import grpc
import pytest

from serving.client import CallFailed
from tests.support.gateway import PHOTO, call_gateway


@pytest.mark.parametrize(
    ("photos", "options", "reason", "violations"),
    [
        ([], {}, "NO_PHOTOS", {"photos": "give 1 to 20 photos"}),
        ([PHOTO] * 21, {}, "TOO_MANY_PHOTOS", {"photos": "21 photos exceed the limit of 20"}),
        (
            [PHOTO],
            {"listing_id": "x" * 201},
            "LISTING_ID_TOO_LONG",
            {"listing_id": "201 characters exceed the limit of 200"},
        ),
        (
            [PHOTO],
            {"num_alternatives": 21},
            "ALTERNATIVE_COUNT_OUT_OF_RANGE",
            {"alternative_count": "21 is outside 0..20"},
        ),
        (
            [PHOTO],
            {"num_alternatives": -1},
            "ALTERNATIVE_COUNT_OUT_OF_RANGE",
            {"alternative_count": "-1 is outside 0..20"},
        ),
    ],
)
def test_bad_requests_name_the_field(bundle, photos, options, reason, violations):
    with pytest.raises(CallFailed) as caught:
        call_gateway(bundle, photos, **options)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.reason, caught.value.violations) == (reason, violations)


def test_twenty_photos_are_taken(bundle):
    assert len(call_gateway(bundle, [PHOTO] * 20).photos) == 20
