import pytest

from vision.suggestion import format_confidence


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "0.0%"), (0.9549, "95.5%"), (0.9994, "99.9%"), (0.9996, "over 99.9%"), (1.0, "over 99.9%")],
)
def test_a_confidence_is_never_100_percent(probability, text):
    assert format_confidence(probability) == text
