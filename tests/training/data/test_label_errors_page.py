import dataclasses
import json

import pytest

from tests.support.helpers import create_scene, encode_image
from tests.support.pages import ParsedPage
from training.data.label_errors import FieldLabelErrors, SuspectedLabel
from training.data.label_errors_page import WEAK_BELOW, render_suspects

PROVENANCE = {"model": "ImageNet features", "manifest_sha256": "ab12"}
HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.fixture
def found(tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encode_image(create_scene(400, 300)))
    suspects = tuple(
        SuspectedLabel(
            field="category",
            rank=rank,
            row=rank,
            photo=str(photo) if rank == 1 else f"gone{HOSTILE}.jpg",
            listing_id=f"l{rank}{HOSTILE}",
            given=f"Gala{HOSTILE}",
            suggested=f"Fuji{HOSTILE}",
            given_probability=0.1,
            suggested_probability=0.8,
        )
        for rank in (1, 2, 3)
    )
    category = FieldLabelErrors(
        field="category",
        suspects=suspects,
        num_compared=100,
        accuracy=0.979,
        num_unlabelled=7,
        num_inner=5,
        rare_classes=(f"Lemon{HOSTILE}",),
        num_rare=4,
        examples={f"Fuji{HOSTILE}": (str(photo),)},
    )
    brand = FieldLabelErrors(
        field="brand",
        suspects=(),
        num_compared=0,
        accuracy=float("nan"),
        num_unlabelled=0,
        num_inner=0,
        rare_classes=(),
        num_rare=0,
        examples={},
    )
    return category, brand


def test_suspects_are_shown_beside_examples_of_the_suggested_label(found):
    page = ParsedPage(render_suspects(found, PROVENANCE, title=HOSTILE, max_shown=2))
    assert len(page.all("li")) == 2
    assert [image["alt"] for image in page.all("img")] == [
        f"Photo labelled Gala{HOSTILE}",
        f"Example of Fuji{HOSTILE}",
        f"Example of Fuji{HOSTILE}",
    ]
    assert f"Photo labelled Gala{HOSTILE}: cannot be shown" in page.text
    assert f"1. Gala{HOSTILE} → Fuji{HOSTILE}" in page.text
    assert "given 10.0%, suggested 80.0%" in page.text
    assert page.all("script") == [{}]  # the report's own


def test_what_was_not_compared_is_counted(found):
    text = ParsedPage(render_suspects(found, PROVENANCE, title="x", max_shown=2)).text
    assert "100 photos compared, 3 suspected, the first 2 shown." in text
    assert "The model agrees with 97.9% of labels." in text
    assert "7 photos without a label." in text
    assert "5 photos labelled with an inner category" in text
    assert f"4 photos of Lemon{HOSTILE}." in text
    assert text.count("without a label") == 1  # nothing of the sort for the brand
    assert "too weak" not in text.lower()


def test_a_model_too_weak_to_accuse_says_so(found):
    weak = dataclasses.replace(found[0], accuracy=WEAK_BELOW - 0.12)
    text = ParsedPage(render_suspects([weak], PROVENANCE, title="x", max_shown=2)).text
    assert "Too weak to accuse: the model agrees with only 68.0% of the category labels" in text


def test_the_verdict_stands_first_and_provenance_follows(found):
    text = render_suspects(found, PROVENANCE, title="x", max_shown=2)
    assert (
        text.index("3 suspected labels: look")
        < text.index("<dt>manifest sha256</dt><dd>ab12</dd>")
        < text.index("<nav")
    )


def test_each_suspect_carries_its_row_of_a_manifest(found):
    items = ParsedPage(render_suspects(found, PROVENANCE, title="x", max_shown=2)).all("li")
    row = json.loads(items[0]["data-manifest-row"])
    suspect = found[0].suspects[0]
    assert row == {"listing_id": suspect.listing_id, "photo": suspect.photo, "category": suspect.given, "brand": ""}
