import dataclasses

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.predictions import create_predictions
from training.calibration.field_rows import FieldRows
from training.calibration.splits import CalibrationListings
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration
from vision.manifest import OUT_OF_SCOPE, Labels

TAXONOMY = create_small_taxonomy()
FITTED = Calibration(certifies={})


def create_rows(*, nodes, brands):
    """Listings of a model that is right about every leaf, and names brand 1; (N,) labels: 0 the right leaf."""
    leaves = np.arange(len(nodes)) % 2
    logits = np.zeros((len(nodes), 4))
    logits[np.arange(len(nodes)), leaves] = np.linspace(2, 6, len(nodes))
    made = create_predictions(logits, leaves)
    brand_logits = np.zeros((len(nodes), 3), np.float32)
    brand_logits[:, 1] = np.linspace(2, 6, len(nodes))
    truth = np.where(np.asarray(nodes) == 0, made.labels.category_nodes, nodes)
    labelled = dataclasses.replace(
        made, brand_logits=brand_logits, labels=Labels(category_nodes=truth, brands=np.asarray(brands))
    )
    return FieldRows(CalibrationListings.from_predictions(labelled, TAXONOMY), TAXONOMY, FITTED)


@pytest.mark.parametrize("name", [PATH_FIELD, BRAND_FIELD, "category_depth_2"])
def test_tests_are_made_on_the_listings_with_a_label_and_the_others_are_counted(name):
    rows = create_rows(nodes=[0, 0, 0, -1, -1], brands=[1, 1, 2, -1, -1])
    tests = rows.build_tests(name, 0.05, (0.0,))
    assert (tests.num_listings, tests.num_unlabelled) == (3, 2)
    assert (tests.tests[0].num_filled, tests.tests[0].num_errors) == (3, 1 if name == BRAND_FIELD else 0)


def test_a_brand_is_wrong_where_the_taxonomy_does_not_cover_the_product():
    rows = create_rows(nodes=[0, 0, 0, OUT_OF_SCOPE, OUT_OF_SCOPE], brands=[1, 1, -1, -1, 1])
    tests = rows.build_tests(BRAND_FIELD, 0.05, (0.0,))
    assert (tests.num_listings, tests.num_unlabelled) == (4, 1)
    assert (tests.tests[0].num_filled, tests.tests[0].num_errors) == (4, 2)


def test_grids_come_from_listings_without_a_label_too():
    rows = create_rows(nodes=[-1] * 40, brands=[-1] * 40)
    for name in (PATH_FIELD, BRAND_FIELD, "category_depth_1"):
        assert rows.build_grid(name, rows.find_known(name), num_listings=100, required=10) == ()
        grid = rows.build_grid(name, rows.find_all(), num_listings=100, required=10)
        assert list(grid) == sorted(grid, reverse=True)
        assert set(grid) & set(rows.compute_scores(name).tolist())
        # The same listings with labels give the same thresholds: no label is read.
        labelled = create_rows(nodes=[0] * 40, brands=[1] * 40)
        assert labelled.build_grid(name, labelled.find_all(), num_listings=100, required=10) == grid
