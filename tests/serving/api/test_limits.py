"""The documents of the wire contract state the limits that the service enforces."""

import json

from serving.api.limits import MAX_ALTERNATIVES, MAX_LISTING_ID_CHARS, MAX_PHOTOS, MESSAGE_LIMIT_BYTES, PHOTO_LIMITS
from tests.conftest import ROOT


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
    assert f"`alternatives`. Range [0, {MAX_ALTERNATIVES}]" in proto
    assert f"At most {MAX_LISTING_ID_CHARS} characters; may be empty" in proto


def test_a_request_holds_a_photo_of_the_largest_size():
    assert PHOTO_LIMITS.max_bytes < MESSAGE_LIMIT_BYTES
