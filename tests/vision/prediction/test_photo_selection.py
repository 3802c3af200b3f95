import numpy as np
import pytest

from vision.calibration import Calibration
from vision.prediction.photo_selection import compute_listing_scope_scores, select_photos

GROUPS = np.array([0, 0, 1, 1, 2])
SCORES = np.array([0.9, 0.2, 0.1, 0.2, 0.5])
LOGITS = np.eye(5)
BRANDS = np.zeros((5, 2))


def test_photos_out_of_scope_are_used_only_where_a_listing_has_no_other():
    selection = select_photos(LOGITS, BRANDS, SCORES, GROUPS, Calibration(scope_threshold=0.5, certifies={}))
    assert selection.in_scope.tolist() == [True, False, False, False, True]
    assert selection.used.tolist() == [True, False, True, True, True]
    assert selection.listings_in_scope.tolist() == [True, False, True]


def test_without_a_threshold_all_are_in_scope():
    selection = select_photos(LOGITS, BRANDS, np.full(5, np.nan), GROUPS, Calibration(certifies={}))
    assert all(part.all() for part in selection)


@pytest.mark.parametrize("noise", [0.0, 5e-5])
def test_a_copy_of_an_earlier_photo_of_the_listing_is_not_used(noise):
    logits = np.array([[1.0, 2], [1, 3], [1, 2], [1, 2], [1 + noise, 2]])
    groups = np.array([0, 0, 1, 0, 1])
    selection = select_photos(logits, BRANDS, np.zeros(5), groups, Calibration(certifies={}))
    assert selection.used.tolist() == [True, True, True, False, False]


def test_of_copies_on_both_sides_of_the_threshold_the_one_in_scope_is_used():
    calibration = Calibration(scope_threshold=0.5, certifies={})
    selection = select_photos(
        np.ones((3, 2)), np.ones((3, 2)), np.array([0.49999, 0.50001, 0.50002]), np.zeros(3, int), calibration
    )
    assert selection.used.tolist() == [False, True, False]


def test_the_best_photo_decides_whether_a_listing_is_in_scope():
    assert compute_listing_scope_scores(SCORES, GROUPS).tolist() == [0.9, 0.2, 0.5]


def test_photos_that_differ_in_any_logit_are_all_used():
    logits = np.zeros((20, 3))
    logits[:, 2] = np.arange(20) / 1000
    same = np.zeros((20, 2))
    for category, brand in ((logits, same), (same, logits)):
        selection = select_photos(category, brand, np.zeros(20), np.zeros(20, int), Calibration(certifies={}))
        assert selection.used.all()
