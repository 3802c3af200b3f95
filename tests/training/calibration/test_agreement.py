import dataclasses

import numpy as np

from tests.support.helpers import create_small_taxonomy
from tests.support.predictions import create_predictions
from training.calibration.agreement import DEFAULT_AGREEMENT_LIMIT, fit_agreement_limit
from training.calibration.splits import CalibrationListings
from vision.calibration import Calibration


def create_listings(rng, *, num, sharpness, noise):
    leaves = rng.integers(0, 4, num)
    logits = rng.normal(0, noise, (num, 4)) + sharpness * np.eye(4)[leaves]
    return CalibrationListings.from_predictions(create_predictions(logits, leaves), create_small_taxonomy())


def compute_contradicted_share(listings, limit):
    """Share of photos that, alone, give their own root less than the limit of their likeliest root."""
    logits = listings.category_logits.astype(float)
    leaves = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    roots = create_small_taxonomy().leaf_paths[:, 0]
    sums = np.stack([leaves[:, roots == root].sum(axis=1) for root in np.unique(roots)], axis=1)
    own = sums[np.arange(len(sums)), np.searchsorted(np.unique(roots), roots[listings.truth.leaves])]
    return (own < limit * sums.max(axis=1)).mean()


def fit(listings):
    return fit_agreement_limit(listings, create_small_taxonomy(), Calibration(certifies={}))


def test_a_model_that_is_sure_and_right_gets_the_lowest_limit_that_stops_mixtures():
    listings = create_listings(np.random.default_rng(0), num=2000, sharpness=14, noise=0.5)
    assert fit(listings) == 0.005
    assert compute_contradicted_share(listings, 0.005) == 0


def test_a_limit_rises_while_mixtures_pass_and_stops_before_honest_groups_suffer():
    rng = np.random.default_rng(1)
    hazy = create_listings(rng, num=3000, sharpness=4, noise=0.3)
    assert fit(hazy) > 0.005
    # A few photos are surely wrong: any limit would take steps from their groups.
    spoilt = dataclasses.replace(hazy, category_logits=hazy.category_logits.copy())
    wrong = rng.random(3000) < 0.02
    spoilt.category_logits[wrong] = np.roll(spoilt.category_logits[wrong] * 2, 2, axis=1)
    assert fit(spoilt) == 0.005


def test_the_same_photos_give_the_same_limit_and_few_give_the_default():
    listings = create_listings(np.random.default_rng(2), num=1000, sharpness=4, noise=1)
    assert fit(listings) == fit(listings)
    few = create_listings(np.random.default_rng(2), num=59, sharpness=4, noise=1)
    assert fit(few) == DEFAULT_AGREEMENT_LIMIT


def test_photos_without_a_known_leaf_have_no_part():
    listings = create_listings(np.random.default_rng(3), num=400, sharpness=14, noise=0.5)
    truth = listings.truth._replace(leaves=np.full(400, -1))
    assert fit(dataclasses.replace(listings, truth=truth)) == DEFAULT_AGREEMENT_LIMIT
