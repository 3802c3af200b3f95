import pytest
from markupsafe import Markup

from tests.support.helpers import create_scene, encode_image
from training.reporting.page import create_thumbnail, format_percent, format_points, is_measured, render


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_was_not_measured_is_a_dash(value):
    assert not is_measured(value)
    assert format_points(value) == format_percent(value) == "–"


def test_shares_are_shown_in_percent():
    assert (format_points(0.1234), format_percent(0.1234)) == ("12.3", "12.3%")


def test_text_is_escaped_and_markup_is_not():
    text = render("page.html", title=Markup("<i>&</i>"))
    assert "<h1><i>&</i></h1>" in text
    assert "<h1>&lt;i&gt;</h1>" in render("page.html", title="<i>")


def test_a_photo_that_cannot_be_read_has_no_thumbnail(tmp_path):
    (tmp_path / "good.jpg").write_bytes(encode_image(create_scene(400, 300)))
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    assert create_thumbnail(str(tmp_path / "good.jpg"), max_px=64).startswith("data:image/jpeg;base64,")
    assert create_thumbnail(str(tmp_path / "bad.jpg"), max_px=64) is None
    assert create_thumbnail(str(tmp_path / "none.jpg"), max_px=64) is None
