import asyncio
from types import SimpleNamespace

import numpy as np

from serving.gateway.occlusion import GRID_SIZE, NUM_VARIANTS, encode_jpeg, explain
from vision.engine import Logits


class WatchesOneCell:
    """The first category's logit is the mean of one cell of the photo."""

    def __init__(self, row, column, num_categories):
        self.row, self.column, self.num_categories, self.num_photos = row, column, num_categories, 0

    async def infer(self, photos_nhwc):
        self.num_photos += len(photos_nhwc)
        side = photos_nhwc.shape[1] // GRID_SIZE
        cell = photos_nhwc[:, self.row * side : (self.row + 1) * side, self.column * side : (self.column + 1) * side]
        logits = np.zeros((len(photos_nhwc), self.num_categories), np.float32)
        logits[:, 0] = cell.mean(axis=(1, 2, 3)) / 25
        return Logits(logits, logits, logits)


def test_the_cell_that_the_model_looks_at_matters_most(bundle):
    photo = np.zeros((70, 70, 3), np.uint8)
    photo[20:30, 40:50] = 255
    engine = WatchesOneCell(2, 4, bundle.info.num_categories)
    found = asyncio.run(
        explain(engine, SimpleNamespace(calibration=bundle.calibration, taxonomy=bundle.taxonomy), photo)
    )
    assert engine.num_photos == NUM_VARIANTS
    assert found.leaf == 0
    assert found.importances.shape == (GRID_SIZE, GRID_SIZE)
    assert np.unravel_index(found.importances.argmax(), found.importances.shape) == (2, 4)
    assert abs(found.importances[6, 0]) < 0.05 < found.importances[2, 4]


def test_the_photo_is_shown_as_jpeg():
    assert encode_jpeg(np.zeros((8, 8, 3), np.uint8)).startswith(b"\xff\xd8")
