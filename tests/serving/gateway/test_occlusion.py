import asyncio
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.gateway.occlusion import GRID_SIZE, NUM_VARIANTS, encode_jpeg, explain
from tests.support.gateway import PHOTO, call_gateway, open_stub, run_gateway
from vision.engine import Logits


class WatchesOneCell:
    """The first category's logit is the mean of one cell of the photo."""

    def __init__(self, row, column, num_categories):
        self.row, self.column, self.num_categories, self.num_photos = row, column, num_categories, 0

    async def infer(self, photos_nhwc, **options):
        self.num_photos += len(photos_nhwc)
        side = photos_nhwc.shape[1] // GRID_SIZE
        cell = photos_nhwc[:, self.row * side : (self.row + 1) * side, self.column * side : (self.column + 1) * side]
        logits = np.zeros((len(photos_nhwc), self.num_categories), np.float32)
        logits[:, 0] = cell.mean(axis=(1, 2, 3)) / 25
        return Logits(logits, logits, logits, logits[:, 0])


def test_the_cell_that_the_model_looks_at_matters_most(bundle):
    photo = np.zeros((70, 70, 3), np.uint8)
    photo[20:30, 40:50] = 255
    engine = WatchesOneCell(2, 4, bundle.info.num_categories)
    found = asyncio.run(
        explain(engine, SimpleNamespace(calibration=bundle.calibration, taxonomy=bundle.taxonomy), photo)
    )
    assert engine.num_photos == NUM_VARIANTS
    assert found.label == 0
    assert found.importances.shape == (GRID_SIZE, GRID_SIZE)
    assert np.unravel_index(found.importances.argmax(), found.importances.shape) == (2, 4)
    assert abs(found.importances[6, 0]) < 0.05 < found.importances[2, 4]


def explain_photo(bundle, content, **request):
    async def run():
        async with run_gateway(bundle) as (gateway_server, _), open_stub(gateway_server) as stub:
            return await stub.ExplainPhoto(pb.ExplainPhotoRequest(photo={"content": content}, **request))

    return asyncio.run(run())


def test_brand_and_category_are_explained_with_their_own_probability(bundle):
    shown = call_gateway(bundle, [PHOTO]).photos[0].recognition
    category = explain_photo(bundle, PHOTO)
    assert (category.category_id, category.name) == (shown.category_id, shown.category_name)
    assert category.probability == pytest.approx(shown.category_probability, abs=1e-5)
    brand = explain_photo(bundle, PHOTO, target=pb.EXPLANATION_TARGET_BRAND)
    assert brand.WhichOneof("target") in ("brand_id", "no_brand")
    assert len(brand.importances) == brand.row_count * brand.column_count == GRID_SIZE**2
    assert (brand.brand_id, brand.name) == (shown.brand_id, shown.brand_name)
    assert brand.model == category.model


def test_an_unusable_photo_is_named_by_its_field(bundle):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        explain_photo(bundle, b"")
    assert [(v.field, v.reason) for v in read_error_details(refused.value).violations] == [
        ("photo.content", "PHOTO_EMPTY")
    ]


def test_the_photo_is_shown_as_jpeg():
    assert encode_jpeg(np.zeros((8, 8, 3), np.uint8)).startswith(b"\xff\xd8")
