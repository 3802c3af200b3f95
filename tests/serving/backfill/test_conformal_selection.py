"""The expected guarantee on populations whose truth is known, and the rule written as p-values."""

import numpy as np
import pytest

from serving.backfill.conformal_selection import FieldScores, select_depths, select_field

ALPHA = 0.1
NUM_LABELLED, NUM_ROWS, NUM_DRAWS = 40, 200, 1000


def draw(rng, *, num_depths=1):
    """Scores and errors of labelled listings and rows, (labelled + rows, depths); errors and scores are nested."""
    shape = (NUM_LABELLED + NUM_ROWS, num_depths)
    scores = np.cumprod(rng.beta(4, 1, shape), axis=1).round(2)
    wrong = np.logical_or.accumulate(rng.random(shape) > scores ** (1 / np.arange(1, num_depths + 1)), axis=1)
    return scores, wrong


def split(scores, wrong):
    return FieldScores(scores[:NUM_LABELLED], wrong[:NUM_LABELLED], scores[NUM_LABELLED:])


def share_wrong(filled, wrong):
    return (filled & wrong).sum() / max(filled.sum(), 1)


def choose_naively(scores, wrong):
    """The loosest threshold from which on the labelled listings are right often enough."""
    allowed = [t for t in np.unique(scores) if wrong[scores >= t].mean() <= ALPHA]
    return min(allowed, default=np.inf)


def test_on_average_few_of_the_filled_rows_are_wrong_and_a_naive_threshold_breaks_that():
    rng = np.random.default_rng(1)
    shares, naive_shares, filled_shares = [], [], []
    for _ in range(NUM_DRAWS):
        scores, wrong = (column[:, 0] for column in draw(rng))
        field = split(scores, wrong)
        found = select_field(field, alpha=ALPHA)
        filled = field.rows >= (np.inf if found.threshold is None else found.threshold)
        assert filled.sum() == found.num_filled
        shares.append(share_wrong(filled, wrong[NUM_LABELLED:]))
        filled_shares.append(filled.mean())
        naive = choose_naively(field.labelled, field.wrong)
        naive_shares.append(share_wrong(field.rows >= naive, wrong[NUM_LABELLED:]))
    assert np.mean(shares) <= ALPHA
    assert np.mean(filled_shares) > 0.1
    # By more than chance explains.
    assert np.mean(naive_shares) - 3 * np.std(naive_shares) / np.sqrt(NUM_DRAWS) > ALPHA


def test_every_depth_has_few_wrong_rows_on_average_among_those_filled_to_it():
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(NUM_DRAWS):
        scores, wrong = draw(rng, num_depths=3)
        depths = [split(scores[:, depth], wrong[:, depth]) for depth in range(3)]
        above = np.ones(NUM_ROWS, dtype=bool)
        shares.append([])
        for depth, found in enumerate(select_depths(depths, alpha=ALPHA)):
            filled = above & (depths[depth].rows >= (np.inf if found.threshold is None else found.threshold))
            assert filled.sum() == found.num_filled
            shares[-1].append(share_wrong(filled, wrong[NUM_LABELLED:, depth]))
            above = filled
    assert (np.mean(shares, axis=0) <= ALPHA).all()
    assert (np.mean(shares, axis=0) > 0).all()


def test_it_is_benjamini_hochberg_on_conformal_p_values():
    rng = np.random.default_rng(3)
    for _ in range(50):
        field = split(*(column[:, 0] for column in draw(rng)))
        p_values = [(1 + (field.wrong & (field.labelled >= s)).sum()) / (NUM_LABELLED + 1) for s in field.rows]
        ranked = np.sort(p_values)
        passed = np.flatnonzero(ranked <= ALPHA * np.arange(1, NUM_ROWS + 1) / NUM_ROWS)
        assert select_field(field, alpha=ALPHA).num_filled == (passed[-1] + 1 if len(passed) else 0)


def test_what_the_depth_above_takes_away_may_leave_too_few_to_fill():
    rows = np.r_[np.full(5, 0.9), np.full(95, 0.5)]
    # Below 0.9 the first depth is wrong; the second, by itself, would be filled throughout.
    labelled = np.r_[np.full(100, 0.9), np.full(100, 0.5)]
    first = FieldScores(labelled, labelled < 0.9, rows)
    second = FieldScores(labelled, np.zeros(200, dtype=bool), rows)
    assert select_field(second, alpha=ALPHA).num_filled == 100
    top, below = select_depths([first, second], alpha=ALPHA)
    assert (top.num_filled, top.threshold) == (5, 0.9)
    assert (below.num_filled, below.threshold) == (5, 0.5)
    # With half of the labels, five rows are too few to bound the share of wrong ones among them.
    fewer = second._replace(labelled=labelled[50:150], wrong=second.wrong[50:150])
    assert select_field(fewer, alpha=ALPHA).num_filled == 100
    top, below = select_depths([first, fewer], alpha=ALPHA)
    assert (top.num_filled, below.num_filled, below.threshold) == (5, 0, None)


@pytest.mark.parametrize(("num_labelled", "num_filled"), [(0, 0), (8, 0), (9, 3), (20, 3)])
def test_rows_without_a_score_are_never_filled_and_few_labels_fill_nothing(num_labelled, num_filled):
    rows = np.array([0.9, 0.9, 0.9])
    field = FieldScores(np.full(num_labelled, 0.9), np.zeros(num_labelled, dtype=bool), rows)
    assert select_field(field, alpha=ALPHA).num_filled == num_filled
    nothing = field._replace(rows=np.full(3, -np.inf))
    assert select_field(nothing, alpha=ALPHA).threshold is None
