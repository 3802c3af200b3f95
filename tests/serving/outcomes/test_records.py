"""Rows of outcomes: checked against the taxonomies that suggestions may have been in."""

from dataclasses import replace

import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.listing_request import ListingRequest
from serving.api.status import Refusal
from serving.api.suggestion_id import SuggestionClaims
from serving.outcomes.records import SCHEMAS, build_outcome_row, build_shadow_row, build_suggestion_row
from tests.support.helpers import create_small_taxonomy

EMPTY_REQUEST = ListingRequest.create(pb.ClassifyListingRequest())


def create_outcome(listing_id="known", **fields):
    return pb.ReportOutcomeRequest(listing_id=listing_id, **fields)


def build_row(request, taxonomies, *, status=pb.SUGGESTION_ID_STATUS_MISSING, claims=None):
    return build_outcome_row(request, status, claims, taxonomies, caller="shop")


def create_claims(**changes):
    model = pb.ModelVersion(version="w1", calibration_version="c1", taxonomy_version=create_small_taxonomy().version)
    return SuggestionClaims(**({"uid": "1f", "listing_id": "known", "caller": "shop", "model": model} | changes))


def build_signed_row(claims=None, taxonomies=None, **request):
    request = pb.ReportOutcomeRequest(**({"category_id": create_small_taxonomy().leaf_ids[0]} | request))
    taxonomies = [create_small_taxonomy()] if taxonomies is None else taxonomies
    return build_row(request, taxonomies, status=pb.SUGGESTION_ID_STATUS_VALID, claims=claims or create_claims())


def test_a_signed_outcome_has_listing_and_release_of_its_suggestion():
    row = build_signed_row()
    assert row["listing_id"] == "known"
    assert (row["suggestion_id_status"], row["suggestion_uid"], row["model_version"]) == ("VALID", "1f", "w1")
    assert row["taxonomy_version"] == create_small_taxonomy().version
    assert row["caller"] == "shop"


def test_an_outcome_for_another_listing_than_the_signed_one_is_refused():
    with pytest.raises(Refusal) as refused:
        build_signed_row(listing_id="other")
    assert [(one.field, one.reason) for one in refused.value.violations] == [("listing_id", "LISTING_ID_MISMATCH")]


def test_a_suggestion_without_listing_id_takes_the_one_of_the_outcome():
    assert build_signed_row(create_claims(listing_id=""), listing_id="later")["listing_id"] == "later"


def test_a_taxonomy_that_no_release_has_is_refused_unless_it_was_signed():
    with pytest.raises(Refusal) as refused:
        build_signed_row(taxonomy_version="nowhere")
    assert [one.reason for one in refused.value.violations] == ["TAXONOMY_UNKNOWN"]
    row = build_signed_row(taxonomies=[replace(create_small_taxonomy(), version="newer")])
    assert row["taxonomy_version"] == create_small_taxonomy().version


def test_ids_are_checked_in_the_named_taxonomy_alone():
    taxonomy = create_small_taxonomy()
    other = replace(taxonomy, version="other", categories=taxonomy.categories[:1])
    request = create_outcome(category_id=taxonomy.leaf_ids[0], taxonomy_version="other")
    with pytest.raises(Refusal) as refused:
        build_row(request, [taxonomy, other])
    assert [one.reason for one in refused.value.violations] == ["CATEGORY_UNKNOWN"]


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
        build_row(request_, [create_small_taxonomy()])
    assert refused.value.reason == "OUTCOME_INVALID"
    assert message in refused.value.message


def test_ids_may_be_of_any_release_in_use():
    taxonomy = create_small_taxonomy()
    request = create_outcome(category_id=taxonomy.leaf_ids[0])
    other = replace(taxonomy, version="other", categories=taxonomy.categories[:1])
    row = build_row(request, [other, taxonomy])
    assert (row["category_id"], row["brand_kind"]) == (taxonomy.leaf_ids[0], None)
    assert set(row) == set(SCHEMAS["outcomes"].names)


def test_rows_of_suggestions_and_shadows_have_the_columns_of_their_tables():
    response = pb.ClassifyListingResponse(listing_id="a", model=pb.ModelVersion(version="2"))
    response.category_path.add(category_id="x", probability=0.5, action=pb.ACTION_PREFILL)
    request = ListingRequest.create(pb.ClassifyListingRequest(photos=[pb.Photo(content=b"123")]))
    row = build_suggestion_row(request, response, uid="1f", rule_version="")
    assert (row["hidden"], row["rule_version"], row["brand_fillable"]) == (False, None, False)
    assert (row["num_filled"], row["photo_bytes"], row["category_ids"]) == (1, 3, ["x"])
    assert set(row) == set(SCHEMAS["suggestions"].names)
    visible = pb.ClassifyListingResponse(model=pb.ModelVersion(version="1"))
    row = build_shadow_row(response, visible)
    assert (row["model_version"], row["answered_model_version"]) == ("2", "1")
    assert set(row) == set(SCHEMAS["shadows"].names)


def count_fillable(*reasons):
    """Levels that could be filled, of a path with these reasons; None is a level that is."""
    response = pb.ClassifyListingResponse()
    for reason in reasons:
        response.category_path.add(not_prefilled=reason and pb.NotPrefilled(reason=f"NOT_PREFILLED_REASON_{reason}"))
    return build_suggestion_row(EMPTY_REQUEST, response, uid="1f", rule_version="r")["num_fillable"]


def test_a_row_says_how_deep_another_threshold_could_fill():
    assert count_fillable(None, "BELOW_THRESHOLD", "PARENT_NOT_PREFILLED") == 3
    assert count_fillable("NOT_CERTIFIED", "CATCH_ALL_CATEGORY", "CATCH_ALL_CATEGORY") == 1
    assert count_fillable(None, "PHOTOS_DISAGREE", "PHOTOS_DISAGREE") == 1
    assert count_fillable("OUT_OF_SCOPE", "OUT_OF_SCOPE") == count_fillable("ANCESTOR_GIVEN", "ANCESTOR_GIVEN") == 0


def test_a_brand_that_some_threshold_could_fill_is_one_with_a_probability_of_one_product():
    def is_fillable(reason, **brand):
        not_prefilled = pb.NotPrefilled(reason=f"NOT_PREFILLED_REASON_{reason}")
        response = pb.ClassifyListingResponse(brand=pb.BrandSuggestion(not_prefilled=not_prefilled, **brand))
        row = build_suggestion_row(EMPTY_REQUEST, response, uid="1f", rule_version="r")
        return row["brand_fillable"]

    assert is_fillable("BELOW_THRESHOLD", probability=0.6)
    assert not is_fillable("PHOTOS_DISAGREE", probability=0.6)
    assert not is_fillable("OTHER_BRAND")
