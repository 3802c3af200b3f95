import dataclasses

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from training.evaluation.scored_rows import score_rows
from training.evaluation.slices import build_slices, evaluate_slices
from training.inference.predictions import Predictions
from vision.calibration import Calibration
from vision.manifest import Labels

TAXONOMY = create_small_taxonomy()

# Listings: two photos of a Gala answered right, one lemon answered as Gala, one tool answered right.
PREDICTIONS = Predictions(
    category_logits=(np.eye(4)[[0, 0, 0, 3]] * 20).astype(np.float32),
    brand_logits=(np.eye(3)[[1, 1, 1, 0]] * 20).astype(np.float32),
    scope_scores=np.ones(4, np.float32),
    labels=Labels(
        category_nodes=np.array([TAXONOMY.node_index[i] for i in ("gala", "gala", "lemon", "tools")]),
        brands=np.array([1, 1, 2, -1]),
    ),
    groups=np.array([0, 0, 1, 2]),
    listing_ids=("a", "b", "c"),
    photo_urls=("0", "1", "2", "3"),
    unusable=(),
    short_sides_px=np.array([200, 300, 100, 2000]),
    brightness=np.array([10.0, 250.0, 63.9, 64.0]),
)


def compute_slices(predictions, *, per_photo=False):
    rows = np.arange(4) if per_photo else predictions.groups
    clusters = predictions.groups if per_photo else None
    view = score_rows(predictions, rows, taxonomy=TAXONOMY, calibration=Calibration(certifies={}), clusters=clusters)
    return evaluate_slices(build_slices(predictions, view, TAXONOMY), view)


def test_each_cut_by_hand():
    by = {(row["by"], row["name"]): row for row in compute_slices(PREDICTIONS)}
    assert {key: row["num"] for key, row in by.items()} == {
        ("photos of the listing", "1"): 2,
        ("photos of the listing", "2 to 3"): 1,
        ("top-level category", "Fruit"): 2,
        ("top-level category", "Tools"): 1,
        ("short side of the photo, px", "0 to 239"): 1,
        ("short side of the photo, px", "240 to 479"): 1,  # 200 and 300, together 250
        ("short side of the photo, px", "1920 or more"): 1,
        ("brightness of the photo, of 255", "0 to 63"): 1,
        ("brightness of the photo, of 255", "64 to 127"): 1,
        ("brightness of the photo, of 255", "128 to 191"): 1,  # 10 and 250, together 130
    }
    fruit = by["top-level category", "Fruit"]
    assert fruit["leaf_top1"] == fruit["brand_top1"] == 0.5
    assert fruit["hierarchical_f1"] == pytest.approx(2 * (3 + 1) / (3 + 3 + 3 + 2))
    assert np.isnan(by["top-level category", "Tools"]["brand_top1"])


def test_a_photo_belongs_to_the_slice_of_its_listing():
    by = {(row["by"], row["name"]): row["num"] for row in compute_slices(PREDICTIONS, per_photo=True)}
    assert by["photos of the listing", "2 to 3"] == 2
    assert by["short side of the photo, px", "0 to 239"] == 2


def test_what_is_not_known_of_photos_is_not_cut_by():
    bare = dataclasses.replace(PREDICTIONS, short_sides_px=None, brightness=None)
    assert {row["by"] for row in compute_slices(bare)} == {"photos of the listing", "top-level category"}
