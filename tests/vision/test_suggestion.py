import pytest

from vision.suggestion import format_confidence, format_shortfall


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "0.0%"), (0.9549, "95.5%"), (0.9994, "99.9%"), (0.9996, "over 99.9%"), (1.0, "over 99.9%")],
)
def test_a_confidence_is_never_100_percent(probability, text):
    assert format_confidence(probability) == text


@pytest.mark.parametrize(
    ("probability", "threshold", "texts"),
    [
        (0.93, 0.97, ("93.0%", "97.0%")),
        (0.96412, 0.96438, ("96.41%", "96.44%")),
        (0.99962, 1.0, ("99.96%", "100.00%")),
        (0.5, 0.5 + 1e-12, ("50.000000%", "over 50.000000%")),
    ],
)
def test_a_probability_looks_less_than_the_threshold_that_it_misses(probability, threshold, texts):
    assert format_shortfall(probability, threshold) == texts
