"""Rows of outcomes: checked against the taxonomies that suggestions may have been in."""

from dataclasses import replace

import pytest

from serving.api.status import Refusal
from serving.outcomes.records import SCHEMAS, build_outcome_row, build_shadow_row, build_suggestion_row
from serving.protocol import listing_vision_pb2 as pb
from tests.support.helpers import create_small_taxonomy


def create_outcome(listing_id="known", **fields):
    return pb.ReportOutcomeRequest(listing_id=listing_id, **fields)


BAD_REQUESTS = {
    "no listing": (create_outcome("", category_id="x"), "listing_id: it is empty"),
    "a long id": (
        create_outcome("x" * 201, brand=pb.BrandChoice(no_brand=True)),
        "201 characters exceed the limit of 200",
    ),
    "a category of nowhere": (create_outcome(category_id="nowhere"), "category_id: 'nowhere' is not in taxonomy"),
    "a brand of nobody": (
        create_outcome(brand=pb.BrandChoice(brand_id="nobody")),
        "brand.brand_id: 'nobody' is not in",
    ),
    "a brand that says nothing": (create_outcome(brand=pb.BrandChoice()), "brand: give brand_id, no_brand (true) or"),
    "no brand, or is it": (
        create_outcome(brand=pb.BrandChoice(no_brand=False)),
        "brand: give brand_id, no_brand (true)",
    ),
    "a blank name": (
        create_outcome(brand=pb.BrandChoice(other_name=" ")),
        "brand.other_name: give 1 to 200 characters",
    ),
    "nothing at all": (create_outcome(), "neither a category nor a brand"),
}


@pytest.mark.parametrize(("request_", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_outcome_is_refused_with_its_field(request_, message):
    with pytest.raises(Refusal) as refused:
        build_outcome_row(request_, [create_small_taxonomy()])
    assert refused.value.reason == "OUTCOME_INVALID"
    assert message in refused.value.message


def test_ids_may_be_of_any_release_in_use():
    taxonomy = create_small_taxonomy()
    request = create_outcome(category_id=taxonomy.leaf_ids[0])
    other = replace(taxonomy, version="other", categories=taxonomy.categories[:1])
    row = build_outcome_row(request, [other, taxonomy])
    assert (row["category_id"], row["brand_kind"]) == (taxonomy.leaf_ids[0], None)
    assert set(row) == set(SCHEMAS["outcomes"].names)


def test_rows_of_suggestions_and_shadows_have_the_columns_of_their_tables():
    response = pb.ClassifyListingResponse(listing_id="a", model=pb.ModelVersion(version="2"))
    response.category_path.add(category_id="x", probability=0.5, outcome=pb.SUGGESTION_OUTCOME_FILL)
    row = build_suggestion_row(pb.ClassifyListingRequest(photos=[pb.Photo(content=b"123")]), response)
    assert (row["num_filled"], row["photo_bytes"], row["category_ids"]) == (1, 3, ["x"])
    assert set(row) == set(SCHEMAS["suggestions"].names)
    visible = pb.ClassifyListingResponse(model=pb.ModelVersion(version="1"))
    row = build_shadow_row(response, visible)
    assert (row["model_version"], row["answered_model_version"]) == ("2", "1")
    assert set(row) == set(SCHEMAS["shadows"].names)
