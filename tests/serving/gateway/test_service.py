"""The gateway over a real channel, its engine in process; engines that misbehave stand in where nothing else can."""

import asyncio

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from listing_vision_client import Action, BrandKind, CallFailed, NotPrefilledReason, PhotoErrorReason
from tests.support.gateway import PHOTO, BusyAdmission, FailingEngine, call_gateway, classify_with_engine, run_gateway
from training.data.synthetic import create_synthetic_photo


def test_a_listing_is_answered(bundle):
    photos = [create_synthetic_photo(product, 1, np.random.default_rng(product)) for product in (0, 0, 6)]
    response = call_gateway(bundle, photos, listing_id="listing-7", num_alternatives=3)
    assert response.listing_id == "listing-7"
    ids = [step.category_id for step in response.category_path]
    assert ids == [category.id for category in bundle.taxonomy.get_lineage(ids[-1])]
    probabilities = [step.probability for step in response.category_path]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(response.category_alternatives) == 3
    assert response.category_alternatives[0].category_id == ids[-1]
    assert all(result.recognition for result in response.photos)
    assert len(response.photos) == 3
    likeliest = response.brand_alternatives[0]
    assert response.brand.kind == (likeliest.kind if likeliest.probability >= 0.5 else BrandKind.UNDETERMINED)
    assert likeliest.kind in (BrandKind.BRAND, BrandKind.NO_BRAND)
    assert response.model.version == bundle.info.model_version
    for step in response.category_path:
        assert step.action in (Action.PREFILL, Action.SUGGEST)
        assert (step.not_prefilled is not None) == (step.action == Action.SUGGEST)


def test_the_answer_lies_below_the_category_that_the_request_names(bundle):
    free = call_gateway(bundle, [PHOTO])
    root = free.category_path[0].category_id
    other = next(one.id for one in bundle.taxonomy.categories if one.parent_id is None and one.id != root)
    hinted = call_gateway(bundle, [PHOTO], ancestor_category_id=other)
    assert hinted.category_path[0].category_id == other
    reasons = {field.not_prefilled.reason for field in (*hinted.category_path, hinted.brand)}
    assert reasons == {NotPrefilledReason.ANCESTOR_GIVEN}
    with pytest.raises(CallFailed, match="ancestor_category_id: 'no such' is not in taxonomy") as refused:
        call_gateway(bundle, [PHOTO], ancestor_category_id="no such")
    assert refused.value.reason == "ANCESTOR_UNKNOWN"


def test_a_bad_photo_is_reported_and_the_rest_answered(bundle):
    response = call_gateway(bundle, [b"", PHOTO, PHOTO[:-500], b"text"])
    reasons = [result.error.reason for result in response.photos if result.error]
    assert reasons == [PhotoErrorReason.EMPTY, PhotoErrorReason.TRUNCATED, PhotoErrorReason.NOT_AN_IMAGE]
    assert response.photos[1].recognition
    alone = call_gateway(bundle, [PHOTO])
    assert response.category_path == alone.category_path


def test_what_no_one_foresaw_is_internal_and_tells_nothing(bundle):
    with pytest.raises(CallFailed) as caught:
        classify_with_engine(bundle, FailingEngine(ZeroDivisionError("secret")))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(caught.value)


def test_a_full_gateway_refuses_at_once_with_a_delay(bundle):
    async def call():
        admission = BusyAdmission(is_busy=False, max_photos=3)
        async with run_gateway(bundle, admission=admission) as (_, client):
            with pytest.raises(CallFailed) as caught:
                await client.classify([PHOTO] * 4)
            assert (await client.classify([PHOTO] * 3)).photos
            return caught.value

    failed = asyncio.run(call())
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
    status = failed.__cause__.trailing_metadata()
    packed = dict(status)["grpc-status-details-bin"]
    assert error_details_pb2.RetryInfo.DESCRIPTOR.full_name.encode() in packed
