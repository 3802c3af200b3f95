import numpy as np
import pytest

from training.calibration.scope import fit_scope_threshold, sharpen_scope_threshold


@pytest.mark.parametrize("num", [59, 1000])
def test_a_threshold_loses_less_than_one_listing_in_a_hundred(num):
    rng = np.random.default_rng(0)
    lost = [(rng.normal(size=1000) < fit_scope_threshold(rng.normal(size=num))).mean() for _ in range(200)]
    assert 0.0005 < np.mean(lost) < 0.01
    # A long tail, which the listings show: no more than the k-th smallest of n loses.
    tailed = [
        (rng.standard_t(2, 1000) < fit_scope_threshold(rng.standard_t(2, num))).mean() for _ in range(200)
    ]  # fmt: skip
    assert np.mean(tailed) < max(1, (num + 1) // 100) / (num + 1) + 0.003


def test_photos_held_out_of_training_show_a_spread_that_few_listings_do_not():
    rng = np.random.default_rng(1)
    held_out = rng.normal(3, 1, 2000)  # higher as a whole: the network has seen them
    few = [rng.normal(size=8) for _ in range(300)]
    alone, together = (
        [(rng.normal(size=500) < fit_scope_threshold(one, other)).mean() for one in few] for other in (None, held_out)
    )
    assert np.mean(together) < np.mean(alone) / 2
    assert np.mean(together) < 0.01


def test_scores_that_are_not_known_have_no_part():
    assert fit_scope_threshold(np.array([np.nan, 0.3])) == 0.3
    assert fit_scope_threshold(np.full(5, np.nan)) is None
    assert fit_scope_threshold(np.full(5, 0.9, np.float32)) <= np.float32(0.9)
    assert fit_scope_threshold(np.array([0.0, 2.0]), np.empty(0)) == fit_scope_threshold(np.array([0.0, 2.0]))


def test_a_threshold_moves_up_for_photos_of_other_things_as_far_as_listings_allow():
    rng = np.random.default_rng(2)
    inside = np.append(rng.normal(0, 1, 2000), np.nan)
    near, far, mixed_up = rng.normal(-4, 0.5, 500), rng.normal(-9, 1, 500), rng.normal(-1, 1, 500)
    moved = sharpen_scope_threshold(-4.5, inside, near)
    assert -4 < moved.threshold < -2.5
    assert (moved.outside_share, moved.lost_share) == (
        (near >= moved.threshold).mean(), (inside[:-1] < moved.threshold).mean()
    )  # fmt: skip
    assert 0.02 < moved.outside_share <= 0.03
    assert sharpen_scope_threshold(-4.5, inside, far).threshold == -4.5
    limited = sharpen_scope_threshold(-4.5, inside, mixed_up)
    assert limited.outside_share > 0.5
    assert 0.02 < limited.lost_share <= 0.03
