"""The documents of the wire contract state the limits that the service enforces."""

import asyncio
import json

from serving.api.limits import (
    DEFAULT_ALTERNATIVES,
    MAX_ALTERNATIVES,
    MAX_LISTING_ID_CHARS,
    MAX_PHOTOS,
    MESSAGE_LIMIT_BYTES,
)
from serving.decoding.prepared import PHOTO_LIMITS
from tests.conftest import ROOT
from tests.support.gateway import PHOTO, run_gateway


def test_the_openapi_document_states_them():
    document = json.loads((ROOT / "serving" / "http_api" / "openapi.json").read_text(encoding="utf-8"))
    content = document["paths"]["/v1/listings:classify"]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]["properties"]
    assert form["photos"]["maxItems"] == MAX_PHOTOS
    assert form["listing_id"]["maxLength"] == MAX_LISTING_ID_CHARS
    assert form["alternative_count"]["maximum"] == MAX_ALTERNATIVES


def test_the_proto_states_them():
    proto = (ROOT / "protos" / "listing" / "vision" / "v1" / "listing_vision.proto").read_text(encoding="utf-8")
    assert f"The listing's photos, 1 to {MAX_PHOTOS}." in proto
    assert f"`brand_alternatives`. Range [0, {MAX_ALTERNATIVES}]" in proto
    assert f"At most {MAX_LISTING_ID_CHARS} characters; may be empty" in proto


def test_a_request_holds_a_photo_of_the_largest_size():
    assert PHOTO_LIMITS.max_bytes < MESSAGE_LIMIT_BYTES


def test_a_request_at_all_limits_is_taken(bundle):
    async def run():
        async with run_gateway(bundle) as (_, client):
            photos, listing_id = [PHOTO] * MAX_PHOTOS, "x" * MAX_LISTING_ID_CHARS
            full = await client.classify(photos, listing_id=listing_id, num_alternatives=MAX_ALTERNATIVES)
            return full, await client.classify([PHOTO]), await client.get_model()

    full, plain, model = asyncio.run(run())
    num_leaves = bundle.info.num_categories
    assert len(full.photos) == MAX_PHOTOS == model.limits.photo_count_limit
    assert len(full.category_alternatives) == min(MAX_ALTERNATIVES, num_leaves)
    assert len(plain.category_alternatives) == min(DEFAULT_ALTERNATIVES, num_leaves)
