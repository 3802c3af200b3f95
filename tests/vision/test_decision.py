import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support.helpers import create_small_taxonomy
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee, Histogram, get_field_name
from vision.decision import compute_prefilled, decide
from vision.errors import BundleError
from vision.prediction.fusion import (
    compute_leaf_probabilities,
)
from vision.prediction.listings import predict_listings
from vision.suggestion import NotPrefilled
from vision.taxonomy import Category, Taxonomy

TAXONOMY = create_small_taxonomy()
NUM_LEAVES, NUM_BRANDS = len(TAXONOMY.leaf_ids), len(TAXONOMY.brand_labels)

some_photos = st.integers(1, 6).flatmap(
    lambda p: st.tuples(
        hnp.arrays(np.float32, (p, NUM_LEAVES), elements=st.floats(-30, 30, width=32)),
        hnp.arrays(np.float32, (p, NUM_BRANDS), elements=st.floats(-30, 30, width=32)),
    )
)


def create_guarantee(name: str, threshold: float | None, uncertified_reason: str = "") -> FieldGuarantee:
    return FieldGuarantee(
        name=name,
        alpha=0.05,
        delta=0.05,
        threshold=threshold,
        num_listings=100,
        num_filled=50,
        num_errors=0,
        uncertified_reason=uncertified_reason,
    )


def calibration(*thresholds: float, brand: float = 0.5, **others: object) -> Calibration:
    fields = [create_guarantee(get_field_name(d), t) for d, t in enumerate(thresholds, start=1)]
    return Calibration(fields=(*fields, create_guarantee(BRAND_FIELD, brand)), certifies={}, **others)


def decide_photos(logits, **options):
    """Decide about photos that are all in scope."""
    return decide(*logits, np.zeros(len(logits[0])), taxonomy=TAXONOMY, **options)


@given(some_photos, st.floats(0, 1), st.floats(0, 1))
def test_a_suggestion_never_goes_deeper_when_more_is_asked_for(photos, one, other):
    low, high = sorted((one, other))

    def depth(threshold: float) -> int:
        suggestion = decide(
            *photos,
            np.zeros(len(photos[0])),
            taxonomy=TAXONOMY,
            calibration=calibration(threshold, threshold, threshold),
        )
        return sum(step.filled for step in suggestion.path)

    assert depth(high) <= depth(low)


@given(some_photos)
def test_the_path_is_consistent_and_ends_in_the_first_alternative(photos):
    suggestion = decide_photos(photos, calibration=calibration(0.5, 0.6, 0.7))
    ids = [step.category_id for step in suggestion.path]
    assert ids == [category.id for category in TAXONOMY.get_lineage(ids[-1])]
    assert ids[-1] == suggestion.alternatives[0].category_id
    filled = [step.filled for step in suggestion.path]
    assert filled == sorted(filled, reverse=True)  # thresholds that grow with depth fill no child without its parent


@given(some_photos, st.randoms())
def test_the_order_of_photos_changes_nothing(photos, random):
    scores = np.array([random.choice((0.2, 0.8)) for _ in photos[0]])
    order = random.sample(range(len(scores)), len(scores))
    certified = calibration(0.4, 0.5, 0.6, brand=0.4, scope_threshold=0.5, agreement_limit=0.1)
    one, other = (
        decide(*(logits[rows] for logits in photos), scores[rows], taxonomy=TAXONOMY, calibration=certified)
        for rows in (list(range(len(scores))), order)
    )
    assert [step.category_id for step in one.path] == [step.category_id for step in other.path]
    np.testing.assert_allclose([s.probability for s in one.path], [s.probability for s in other.path])
    codes = [
        [field.not_prefilled and field.not_prefilled.code for field in (*found.path, found.brand)]
        for found in (one, other)
    ]
    assert codes[0] == codes[1]
    assert [one.photos[row].disagrees for row in order] == [photo.disagrees for photo in other.photos]


@given(some_photos, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_agreement_limit_never_fills_more(photos, threshold, one, other):
    lenient, strict = (
        decide_photos(photos, calibration=calibration(*[threshold] * 3, brand=threshold, agreement_limit=limit))
        for limit in sorted((one, other))
    )
    assert sum(step.filled for step in strict.path) <= sum(step.filled for step in lenient.path)
    assert strict.brand.filled <= lenient.brand.filled


@given(some_photos, st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_a_stricter_scope_threshold_never_fills_more_of_photos_with_one_score(photos, threshold, score, one, other):
    # With several scores, it may leave out a photo that the others do not agree with.
    lenient, strict = (
        decide(
            *photos,
            np.full(len(photos[0]), score),
            taxonomy=TAXONOMY,
            calibration=calibration(*[threshold] * 3, brand=threshold, scope_threshold=limit),
        )
        for limit in sorted((one, other))
    )
    assert sum(step.filled for step in strict.path) <= sum(step.filled for step in lenient.path)
    assert strict.brand.filled <= lenient.brand.filled


def test_the_order_of_photos_changes_neither_scope_nor_agreement():
    # Two photos of one leaf, one of another root, and one of nothing that the taxonomy covers.
    category_logits = np.array([[9, 0, 0, 0], [8, 1, 0, 0], [0, 0, 0, 9], [0, 9, 0, 0]], np.float32)
    brand_logits = np.array([[0, 9, 0], [0, 8, 1], [0, 0, 9], [9, 0, 0]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    certified = calibration(0.5, 0.5, 0.5, agreement_limit=0.05, scope_threshold=0.5)
    for rows in map(list, itertools.permutations(range(4))):
        found = predict_listings(
            category_logits[rows],
            brand_logits[rows],
            scores[rows],
            np.zeros(4, int),
            taxonomy=TAXONOMY,
            calibration=certified,
        )
        assert found.paths.num_fillable.tolist() == [0]
        assert found.brands.fillable.tolist() == [False]
        assert found.photos_used.tolist() == (np.array(rows) < 3).tolist()
        assert found.photos_in_scope.tolist() == (np.array(rows) < 3).tolist()
        assert found.photos_disagree.tolist() == (np.array(rows) == 2).tolist()


@given(some_photos, st.integers(2, 4))
def test_photos_given_several_times_each_change_nothing(photos, times):
    repeated = tuple(np.repeat(logits, times, axis=0) for logits in photos)
    for how in ("mean", "max"):
        certified = calibration(0.5, brand_fusion=how)
        one, other = (decide_photos(p, calibration=certified) for p in (photos, repeated))
        np.testing.assert_allclose([s.probability for s in one.path], [s.probability for s in other.path])
        np.testing.assert_allclose(one.brand.probability, other.brand.probability)


@given(some_photos)
def test_under_max_a_photo_given_twice_changes_the_brand_in_nothing(photos):
    certified = calibration(0.5, brand_fusion="max")
    twice = tuple(np.concatenate([logits, logits[:1]]) for logits in photos)
    one, other = (decide_photos(p, calibration=certified).brand for p in (photos, twice))
    assert one == other


@given(st.lists(some_photos, min_size=1, max_size=5), st.integers(0, 100), st.randoms())
def test_many_listings_are_answered_like_each_alone(listings, copies, random):
    # More than one chunk of listings, photos in any order.
    listings = listings + listings[:1] * copies
    rows = [(i, c, b) for i, (category, brand) in enumerate(listings) for c, b in zip(category, brand, strict=True)]
    random.shuffle(rows)
    certified = calibration(0.5, 0.6, 0.7, unknown_brand_below=1.0)
    together = predict_listings(
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        np.zeros(len(rows)),
        np.array([row[0] for row in rows]),
        taxonomy=TAXONOMY,
        calibration=certified,
    )
    filled = compute_prefilled(together, taxonomy=TAXONOMY, calibration=certified)
    for i, photos in enumerate(listings[:6]):
        alone = decide_photos(photos, calibration=certified)
        depth = len(alone.path)
        np.testing.assert_allclose(together.paths.scores[i, :depth], [step.probability for step in alone.path])
        assert together.brands.labels[i] == alone.brand.brand_index
        assert filled[i, :depth].tolist() == [step.filled for step in alone.path]
        assert filled[i, -1] == alone.brand.filled


@given(some_photos, st.sampled_from(["mean", "max"]))
def test_each_photo_is_recognised_bit_for_bit_as_a_listing_of_its_own(photos, how):
    certified = calibration(
        0.5, 0.6, 0.7, category_temperature=1.3, brand_fusion=how, unknown_brand_below=1.0, agreement_limit=0.1
    )
    together = decide_photos(photos, calibration=certified)
    for i, photo in enumerate(together.photos):
        alone = decide_photos(tuple(logits[i : i + 1] for logits in photos), calibration=certified)
        assert alone.photos == (dataclasses.replace(photo, disagrees=False),)
        assert (photo.category_id, photo.category_probability) == (
            alone.path[-1].category_id,
            alone.path[-1].probability,
        )
        assert (photo.brand_index, photo.brand_probability) == (alone.brand.brand_index, alone.brand.probability)


@given(some_photos, st.integers(0, 6))
def test_alternatives_are_the_likeliest_leaves_in_order(photos, num_alternatives):
    certified = Calibration(certifies={})
    listed = decide_photos(photos, calibration=certified, num_alternatives=num_alternatives).alternatives
    groups = np.zeros(len(photos[0]), int)
    used = predict_listings(*photos, groups, groups, taxonomy=TAXONOMY, calibration=certified).photos_used
    leaves = compute_leaf_probabilities(photos[0][used], groups[used], certified, TAXONOMY)[0]
    best = np.argsort(-leaves, kind="stable")[:num_alternatives]
    assert [a.category_id for a in listed] == [TAXONOMY.leaf_ids[i] for i in best]


@given(some_photos, st.lists(st.floats(0.3, 3), min_size=3, max_size=3))
def test_temperatures_by_depth_keep_a_distribution_over_the_tree(photos, temperatures):
    photos = tuple(logits[:1] for logits in photos)
    groups = np.zeros(1, int)
    plain, ones, refined = (
        compute_leaf_probabilities(
            photos[0], groups, Calibration(category_depth_temperatures=t, certifies={}), TAXONOMY
        )
        for t in ((), (1.0, 1.0, 1.0), tuple(temperatures))
    )
    np.testing.assert_allclose(ones, plain, atol=1e-12)
    np.testing.assert_allclose(refined.sum(axis=1), 1)
    certified = calibration(0.5, 0.6, 0.7, category_depth_temperatures=tuple(temperatures))
    steps = [step.probability for step in decide_photos(photos, calibration=certified).path]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == pytest.approx(refined.max())


def test_each_field_says_why_it_is_only_suggested():
    certified = Calibration(
        fields=(
            create_guarantee("category_depth_1", 0.5),
            create_guarantee("category_depth_2", None, "too few listings"),
        ),
        certifies={},
    )
    logits = np.array([[4.0, 0, 0, 0]]), np.array([[0.0, 9, 0]])
    suggestion = decide_photos(logits, calibration=certified)
    assert [step.filled for step in suggestion.path] == [True, False, False]
    assert suggestion.path[0].not_prefilled is None
    assert suggestion.path[1].not_prefilled == NotPrefilled(code="NOT_CERTIFIED", message="too few listings")
    assert suggestion.path[2].not_prefilled.code == "NOT_CALIBRATED"
    assert suggestion.brand.not_prefilled.code == "NOT_CALIBRATED"
    strict = decide_photos(logits, calibration=calibration(0.9999))
    below = strict.path[0].not_prefilled
    assert (below.code, below.threshold) == ("BELOW_THRESHOLD", 0.9999)
    assert "is below the certified threshold, 100.0" in below.message


def test_a_void_calibration_fills_nothing_but_keeps_its_temperatures():
    voided = calibration(0.0, 0.0, 0.0, brand=0.0, category_temperature=1.5).void("weights changed")
    suggestion = decide(
        np.ones((1, NUM_LEAVES)), np.ones((1, NUM_BRANDS)), np.zeros(1), taxonomy=TAXONOMY, calibration=voided
    )
    assert not any(step.filled for step in suggestion.path)
    assert suggestion.brand.not_prefilled == NotPrefilled(code="CERTIFICATE_VOID", message="weights changed")
    assert voided.category_temperature == 1.5


def test_calibration_round_trip_and_schema():
    written = calibration(
        0.5,
        0.75,
        brand_fusion="max",
        brand_temperature=0.7,
        expected={"leaf_probability": Histogram(edges=(0.5, 0.9), shares=(0.1, 0.3, 0.6), num_values=10)},
    )
    assert Calibration.from_json(written.to_json()) == written
    with pytest.raises(BundleError, match="schema_version"):
        Calibration.from_json("{}")


def test_one_guarantee_of_the_path_decides_at_each_depth():
    path = create_guarantee(PATH_FIELD, 0.6)
    certified = Calibration(fields=(path, create_guarantee(BRAND_FIELD, None)), certifies={})
    logits = np.log([[0.5, 0.3, 0.1, 0.1]])
    made = decide(logits, np.zeros((1, 3)), np.zeros(1), taxonomy=TAXONOMY, calibration=certified)
    assert [step.filled for step in made.path] == [True, True, False]
    assert made.path[2].not_prefilled.code == "BELOW_THRESHOLD"
    assert made.path[2].not_prefilled.threshold == 0.6


def test_a_sole_root_is_filled_with_the_level_below_and_says_so():
    tree = Taxonomy(
        version="x",
        categories=(
            Category(id="all", names={"en": "All"}),
            *(Category(id=i, names={"en": i}, parent_id="all") for i in ("a", "b")),
        ),
        brands=(),
    )
    certified = Calibration(fields=(create_guarantee(PATH_FIELD, 0.8),), certifies={})
    for shares, filled in (((0.9, 0.1), True), ((0.7, 0.3), False)):
        root, leaf = decide(np.log([shares]), np.zeros((1, 1)), np.zeros(1), taxonomy=tree, calibration=certified).path
        assert (root.filled, leaf.filled) == (filled, filled)
    assert root.not_prefilled.code == "ONLY_CATEGORY"


def test_nothing_is_filled_for_what_the_taxonomy_does_not_cover():
    certified = calibration(0.1, 0.1, 0.1, brand=0.1, scope_threshold=0.5)
    logits = np.eye(NUM_LEAVES)[:2] * 9, np.eye(NUM_BRANDS)[[1, 1]] * 9
    outside = decide(*logits, np.array([0.4, 0.3]), taxonomy=TAXONOMY, calibration=certified)
    assert not outside.in_scope
    assert {step.not_prefilled.code for step in outside.path} == {"OUT_OF_SCOPE"} == {outside.brand.not_prefilled.code}
    # A score that the model did not compute is no proof.
    assert not decide(*logits, np.full(2, np.nan), taxonomy=TAXONOMY, calibration=certified).in_scope
    assert decide(*logits, np.array([0.5, 0.6]), taxonomy=TAXONOMY, calibration=certified).brand.filled


@given(some_photos, st.sampled_from([category.id for category in TAXONOMY.categories]))
def test_under_a_hint_the_path_leads_through_it_and_nothing_is_filled(photos, hint):
    certified = calibration(0.0, 0.0, 0.0, brand=0.0)
    free = decide_photos(photos, calibration=certified)
    hinted = decide_photos(photos, calibration=certified, ancestor=TAXONOMY.node_index[hint])
    assert hint in [step.category_id for step in hinted.path]
    assert {field.not_prefilled.code for field in (*hinted.path, hinted.brand)} == {"ANCESTOR_GIVEN"}
    assert hinted.brand.brand_index == free.brand.brand_index
    below = {leaf for leaf in TAXONOMY.leaf_ids if hint in [one.id for one in TAXONOMY.get_lineage(leaf)]}
    assert {one.category_id for one in hinted.alternatives} <= below
    if free.path[-1].category_id in below:  # the hint agrees with what was suggested anyway
        assert [step.category_id for step in hinted.path] == [step.category_id for step in free.path]
        assert hinted.path[-1].probability >= free.path[-1].probability - 1e-9


def test_a_photo_out_of_scope_has_no_part_in_a_good_listing():
    certified = calibration(0.1, 0.1, 0.1, scope_threshold=0.5)
    logits = np.eye(NUM_LEAVES)[:2] * [[5], [9]], np.eye(NUM_BRANDS)[[1, 2]] * 9
    mixed = decide(*logits, np.array([0.9, 0.1]), taxonomy=TAXONOMY, calibration=certified)
    alone = decide(logits[0][:1], logits[1][:1], np.array([0.9]), taxonomy=TAXONOMY, calibration=certified)
    assert [photo.in_scope for photo in mixed.photos] == [True, False]
    assert (mixed.path, mixed.brand) == (alone.path, alone.brand)


@given(st.lists(some_photos, min_size=1, max_size=5), st.randoms())
def test_listings_together_are_decided_about_as_each_alone_whatever_is_out_of_scope(listings, random):
    certified = calibration(0.4, 0.5, 0.6, brand=0.4, scope_threshold=0.5, agreement_limit=0.2)
    scores = [np.array([random.random() for _ in photos[0]]) for photos in listings]
    groups = np.repeat(np.arange(len(listings)), [len(photos[0]) for photos in listings])
    together = predict_listings(
        np.concatenate([photos[0] for photos in listings]),
        np.concatenate([photos[1] for photos in listings]),
        np.concatenate(scores),
        groups,
        taxonomy=TAXONOMY,
        calibration=certified,
    )
    filled = compute_prefilled(together, taxonomy=TAXONOMY, calibration=certified)
    for i, (photos, own_scores) in enumerate(zip(listings, scores, strict=True)):
        alone = decide(*photos, own_scores, taxonomy=TAXONOMY, calibration=certified)
        assert together.in_scope[i] == alone.in_scope
        assert together.photos_in_scope[groups == i].tolist() == [photo.in_scope for photo in alone.photos]
        assert together.photos_disagree[groups == i].tolist() == [photo.disagrees for photo in alone.photos]
        assert filled[i, : len(alone.path)].tolist() == [step.filled for step in alone.path]
        assert together.brands.fillable[i] == (
            alone.brand.not_prefilled is None
            or alone.brand.not_prefilled.code not in ("OUT_OF_SCOPE", "PHOTOS_DISAGREE")
        )
        strict = dataclasses.replace(certified, scope_threshold=0.7)
        if not decide(*photos, own_scores, taxonomy=TAXONOMY, calibration=strict).in_scope:
            continue
        assert alone.in_scope  # a stricter gate lets no more pass
