"""The dataclasses have what the contract has, no more and no less."""

import dataclasses

import pytest

from listing_vision_client import enums, results
from listing_vision_client.convert import find_field, from_message
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import reasons_pb2

OF_OTHER_NAMES = {
    "Explanation": "ExplainPhotoResponse",
    "ListingSuggestion": "ClassifyListingResponse",
    "OutcomeReceipt": "ReportOutcomeResponse",
    "ServingModel": "GetModelResponse",
    "Taxonomy": "GetTaxonomyResponse",
}


@pytest.mark.parametrize("name", results.__all__)
def test_a_result_has_every_field_of_its_message(name):
    descriptor = pb.DESCRIPTOR.message_types_by_name[OF_OTHER_NAMES.get(name, name)]
    fields = [find_field(descriptor, one.name).name for one in dataclasses.fields(getattr(results, name))]
    assert fields == [field.name for field in descriptor.fields]


@pytest.mark.parametrize("name", enums.__all__)
def test_an_enum_has_every_value_of_the_contract(name):
    module = reasons_pb2 if name == "PhotoErrorReason" else pb
    values = module.DESCRIPTOR.enum_types_by_name[name].values
    assert [member.value for member in getattr(enums, name)] == [value.name for value in values]


def test_each_kind_of_field_is_read():
    message = pb.ClassifyListingResponse(
        listing_id="a",
        category_path=[
            pb.CategorySuggestion(
                category_id="bags",
                probability=0.25,
                action=pb.ACTION_SUGGEST,
                not_prefilled=pb.NotPrefilled(reason=pb.NOT_PREFILLED_REASON_NOT_CERTIFIED, required_listing_count=0),
            )
        ],
        brand=pb.BrandSuggestion(kind=pb.BRAND_KIND_OTHER),
        photos=[pb.PhotoResult(error=pb.PhotoError(reason=reasons_pb2.PHOTO_EMPTY))],
        embedding=[0.5, 1.5],
        stage_times=[{"stage": pb.STAGE_MODEL, "duration": {"nanos": 2_500_000}}],
    )
    found = from_message(results.ListingSuggestion, message)
    (step,) = found.category_path
    assert (step.category_id, step.probability, step.action) == ("bags", 0.25, enums.Action.SUGGEST)
    assert step.not_prefilled.reason == enums.NotPrefilledReason.NOT_CERTIFIED
    assert (step.not_prefilled.threshold, step.not_prefilled.required_listing_count) == (None, 0)
    assert (found.brand.kind, found.brand.probability, found.brand.not_prefilled) == (enums.BrandKind.OTHER, None, None)
    assert found.photos[0].recognition is None
    assert found.photos[0].error.reason == enums.PhotoErrorReason.EMPTY
    assert found.embedding == (0.5, 1.5)
    assert found.stage_times == (results.StageTime(stage=enums.Stage.MODEL, duration_s=0.0025),)
    assert found.model.version == ""


def test_names_by_language_are_a_mapping():
    message = pb.GetTaxonomyResponse(categories=[pb.Category(category_id="bags", names={"en": "Bags", "ja": "バッグ"})])
    (category,) = from_message(results.Taxonomy, message).categories
    assert (category.names, category.parent_id) == ({"en": "Bags", "ja": "バッグ"}, None)


def test_values_of_a_later_service_are_the_default():
    error = from_message(results.PhotoError, pb.PhotoError(reason=1000))
    assert error.reason == enums.PhotoErrorReason.UNREADABLE
    assert from_message(results.CategorySuggestion, pb.CategorySuggestion(action=1000)).action == "ACTION_UNSPECIFIED"
