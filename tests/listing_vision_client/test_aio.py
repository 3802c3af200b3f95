import asyncio
import contextlib
import itertools
import time

import grpc
import pytest

from listing_vision_client import (
    AsyncListingVisionClient,
    BrandChoice,
    CallFailed,
    ListingToClassify,
    SuggestionIdStatus,
)
from serving.api.status import Refusal
from tests.support.gateway import PHOTO, call_gateway, run_gateway

BUSY = Refusal(reason="TOO_BUSY", message="later", retry_after_s=0.2)


def test_every_call_returns_its_result(bundle, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(PHOTO)

    async def run():
        async with run_gateway(bundle, outcomes=str(tmp_path / "outcomes")) as (_, client):
            suggestion = await client.classify([path, PHOTO], listing_id="a", language_code="ja", num_alternatives=2)
            leaf_id = suggestion.category_path[-1].category_id
            receipt = await client.report_outcome(
                suggestion_id=suggestion.suggestion_id,
                listing_id="a",
                category_id=leaf_id,
                brand=BrandChoice(no_brand=True),
            )
            return suggestion, receipt, await client.explain(PHOTO), await client.get_taxonomy(language_code="ja")

    suggestion, receipt, explanation, taxonomy = asyncio.run(run())
    assert len(suggestion.category_alternatives) == 2
    assert len(suggestion.photos) == 2
    assert receipt.suggestion_id_status == SuggestionIdStatus.VALID
    assert explanation.category_id == suggestion.category_path[-1].category_id
    assert len(explanation.importances) == explanation.row_count * explanation.column_count
    assert [category.category_id for category in taxonomy.categories] == [c.id for c in bundle.taxonomy.categories]
    names = {category.category_id: category.name for category in taxonomy.categories}
    assert [step.name for step in suggestion.category_path] == [names[s.category_id] for s in suggestion.category_path]


def test_an_embedding_is_returned_where_asked_for(bundle):
    assert call_gateway(bundle, [PHOTO], include_embedding=True).embedding
    assert not call_gateway(bundle, [PHOTO]).embedding


def run_with(service, call, **options):
    async def run():
        async with AsyncListingVisionClient(service.address, **options) as client:
            return await call(client)

    return asyncio.run(run())


def test_retries_are_those_of_the_blocking_client(fake_service):
    with fake_service(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) as service:
        assert run_with(service, lambda client: client.get_model()).category_count == 7
        assert service.num_attempts == 3
    with fake_service(BUSY) as service, pytest.raises(CallFailed) as caught:
        run_with(service, lambda client: client.get_model())
    assert (caught.value.reason, caught.value.retry_delay_s, service.num_attempts) == ("TOO_BUSY", 0.2, 1)
    with fake_service(BUSY) as service:
        began_s = time.monotonic()
        assert run_with(service, lambda client: client.get_model(), num_busy_retries=1).category_count == 7
        assert time.monotonic() - began_s >= 0.2


async def create_listings(num_listings):
    for number in range(num_listings):
        await asyncio.sleep(0)
        yield ListingToClassify([PHOTO], listing_id=str(number))


def test_a_stream_classifies_every_listing(bundle):
    async def run():
        async with run_gateway(bundle) as (_, client):
            found = [result async for result in client.classify_stream(create_listings(80))]
            endless = (ListingToClassify([PHOTO], listing_id=str(number)) for number in itertools.count())
            async with contextlib.aclosing(client.classify_stream(endless)) as stream:
                first = await anext(stream)
            return found, first

    found, first = asyncio.run(run())
    assert sorted(int(result.suggestion.listing_id) for result in found) == list(range(80))
    assert all(result.suggestion.listing_id == result.listing.listing_id for result in found)
    assert first.suggestion


def test_an_error_of_the_callers_own_listings_is_raised(fake_service):
    async def read(client):
        async def fail():
            yield ListingToClassify([b"a"], listing_id="a")
            raise KeyError("b")

        stream = client.classify_stream(fail())
        first = await anext(stream)
        with pytest.raises(KeyError, match="b"):
            await anext(stream)
        return first.suggestion.listing_id

    with fake_service() as service:
        assert run_with(service, read) == "a"


def test_a_stream_whose_service_goes_raises(fake_service):
    async def read(client):
        async for _ in client.classify_stream(create_listings(1)):
            pass

    service = fake_service()
    with service:
        pass
    with pytest.raises(CallFailed) as caught:
        run_with(service, read)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
