import pytest

from vision.runtime.wording import format_count


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("photo", "photos"),
        ("category", "categories"),
        ("tune listing", "tune listings"),
        ("class", "classes"),
        ("day", "days"),
        ("batch", "batches"),
        ("epoch", "epochs"),
    ],
)
def test_things_are_counted_in_words(noun, plural):
    counted = [format_count(num, noun) for num in (0, 1, 2)]
    assert counted == [f"0 {plural}", f"1 {noun}", f"2 {plural}"]


def test_the_verb_goes_with_the_number():
    assert [format_count(num, "row", "has") for num in (1, 2)] == ["1 row has", "2 rows have"]
    assert format_count(2, "photo", "was") == "2 photos were"
