"""What may be mixed in an upgrade: gateways, callers, bundles, stored files of two versions (docs/contracts.md)."""

import asyncio
import json
import shutil
from datetime import timedelta

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from listing_vision_client import AsyncListingVisionClient, ListingVisionClient, SuggestionIdStatus
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.suggestion_id import write_random_key
from serving.backfill.job import JOB_PATH, read_job
from serving.errors import BackfillError
from serving.outcomes.records import SCHEMAS
from serving.storage import Store
from tests.support.bundles import change_manifest
from tests.support.fake_service import FakeService
from tests.support.gateway import PHOTO, run_gateway
from tests.support.helpers import create_small_taxonomy
from tests.support.outcome_tables import create_outcome, create_suggestion, write_tables
from training.outcomes.tables import open_tables
from vision.bundle import load_bundle
from vision.errors import BundleError

LATER_FIELD = b"\xc2\x3e\x05later"
"""Field 1000 of a message, five bytes: what no version has today."""


class LaterService(FakeService):
    def GetModel(self, request, context):
        response = super().GetModel(request, context)
        response.MergeFromString(LATER_FIELD)
        return response


def test_gateways_with_two_bundles_behind_one_name_name_their_model_and_verify_each_others_ids(
    bundle, other_bundle, tmp_path
):
    key = tmp_path / "suggestion.key"
    write_random_key(key)
    options = {"suggestion_key": key, "outcomes": str(tmp_path / "outcomes"), "isolate": False}

    async def run():
        async with (
            run_gateway(bundle, **options) as (one, client_of_one),
            run_gateway(other_bundle, **options) as (two, _),
        ):
            addresses = [f"127.0.0.1:{server.port}" for server in (one, two)]
            async with AsyncListingVisionClient(addresses) as client:
                found = [await client.classify([PHOTO], listing_id=str(number)) for number in range(6)]
            receipts = [
                await client_of_one.report_outcome(
                    suggestion_id=one.suggestion_id, category_id=one.category_path[0].category_id
                )
                for one in found
            ]
            return found, receipts

    found, receipts = asyncio.run(run())
    assert {suggestion.model.version for suggestion in found} == {
        bundle.info.model_version,
        other_bundle.info.model_version,
    }
    assert {receipt.suggestion_id_status for receipt in receipts} == {SuggestionIdStatus.VALID}


def test_a_later_caller_is_served_by_this_gateway(bundle):
    request = pb.ClassifyListingRequest(photos=[{"content": PHOTO}], listing_id="a").SerializeToString()

    async def run():
        async with (
            run_gateway(bundle, isolate=False) as (server, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            call = channel.unary_unary("/listing.vision.v1.ListingVisionService/ClassifyListing")
            return pb.ClassifyListingResponse.FromString(await call(request + LATER_FIELD))

    assert asyncio.run(run()).category_path


def test_this_caller_reads_the_response_of_a_later_gateway():
    with LaterService() as service, ListingVisionClient(service.address) as client:
        assert client.get_model().category_count == 7


def test_a_bundle_of_a_later_version_is_refused_with_what_to_do(bundle, tmp_path):
    later = shutil.copytree(bundle.folder, tmp_path / "bundle")
    change_manifest(later, colour_space="oklab")
    with pytest.raises(BundleError, match="'colour_space' is not known to this version; update listing-vision"):
        load_bundle(later)


@pytest.mark.parametrize(("change", "message"), [({"schema_version": 2}, "is not 1"), ({"later": 1}, "later")])
def test_a_backfill_of_a_later_version_is_refused_and_left_as_it_is(tmp_path, change, message):
    job = {"schema_version": 1, "model": {}, **change}
    path = tmp_path / JOB_PATH
    path.parent.mkdir()
    path.write_text(json.dumps(job))
    with pytest.raises(BackfillError, match=message):
        read_job(Store(str(tmp_path)))
    assert json.loads(path.read_text()) == job


def test_outcomes_of_gateways_of_two_versions_are_read_together(tmp_path):
    suggestions = [create_suggestion(str(number), 1) for number in range(4)]
    outcomes = [create_outcome(str(number), 2) for number in range(4)]
    url = write_tables(tmp_path, suggestions, outcomes)
    earlier = [name for name in SCHEMAS["suggestions"].names if name != "photo_bytes"]
    path = tmp_path / "suggestions" / "2026-01-01" / "0.parquet"
    pq.write_table(pq.read_table(path).select(earlier), path)
    path = tmp_path / "suggestions" / "2026-01-01" / "1.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("later", pa.array([timedelta(1)] * len(table))), path)
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        assert tables.num_outcomes == len(outcomes)
        assert tables.load_outcomes("brand").field == "brand"
        assert tables.count_unjoined() == 0
