import numpy as np
import pytest
import torch

from training.export.scope_head import fit_scope_head


def sample(rng, num, mixing):
    """(num, F) correlated channel means about 1."""
    return (1 + rng.normal(0, 0.3, (num, len(mixing))) @ mixing).astype(np.float32)


def test_channel_means_unlike_those_of_training_score_lower():
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (40, 60))
    head = fit_scope_head(sample(rng, 800, mixing))
    inside = head(torch.from_numpy(sample(rng, 300, mixing)))
    outside = head(torch.from_numpy(sample(rng, 300, rng.normal(0, 1, (40, 60)))))
    assert inside.shape == (300,)
    assert outside.max() < inside.min()


def test_a_score_is_minus_the_log_of_the_squared_distance_in_units_of_the_spread():
    rng = np.random.default_rng(1)
    values = (rng.normal(0, 1, (5000, 3)) * [1, 5, 0.1] + [0, 7, -2]).astype(np.float32)
    head = fit_scope_head(values)
    photo = values.mean(axis=0) + values.std(axis=0) * [3, 0, 0]
    # A ridge of 3 %; the three channels are all but uncorrelated.
    assert float(head(torch.from_numpy(photo[None].astype(np.float32)))) == pytest.approx(
        -np.log(9 / 1.03 / 3), abs=0.1
    )
    # The mean itself is at no distance; its score is finite all the same.
    assert np.isfinite(float(head(head.mean[None])))


def test_fewer_photos_than_channels_and_constant_channels_give_finite_scores():
    rng = np.random.default_rng(2)
    few = rng.normal(0, 1, (3, 30)).astype(np.float32)
    few[:, 0] = 1
    for values in (few, few[:1]):
        head = fit_scope_head(values)
        assert head.whitening.shape == (30, 30)
        assert torch.isfinite(head(torch.from_numpy(few))).all()
