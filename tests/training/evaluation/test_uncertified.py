import pytest

from training.evaluation.uncertified import explain_uncertified
from vision.calibration import FieldGuarantee


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"num_required": 236},
            "Not enough verified examples yet: about 236 listings that it would fill, all right, are needed; "
            "151 with a known label are there.",
        ),
        ({"num_required": 90, "uncertified_reason": "too many errors"}, "Too many errors."),
        ({"uncertified_code": "PARENT_NOT_PREFILLED"}, "The level above is never filled in."),
        ({}, "There is no certified threshold."),
    ],
)
def test_reasons_are_whole_sentences(changes, sentence):
    guarantee = FieldGuarantee(
        name="brand", alpha=0.05, delta=0.05, threshold=None, num_listings=151, num_filled=0, num_errors=0, **changes
    )
    assert explain_uncertified(guarantee) == sentence
