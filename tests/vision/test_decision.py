import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support.helpers import create_small_taxonomy
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee, Histogram, get_field_name
from vision.decision import (
    compute_leaf_probabilities,
    compute_node_probabilities,
    compute_prefilled,
    decide,
    fuse_brand_logits,
    fuse_logits,
    predict_listings,
    predict_paths,
    softmax,
)
from vision.errors import BundleError
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


@given(some_photos)
def test_probabilities_up_the_tree_never_exceed_one_nor_fall_below_their_children(photos):
    leaves = softmax(photos[0])
    nodes = compute_node_probabilities(leaves, TAXONOMY)
    assert (nodes <= 1).all()
    for category in TAXONOMY.categories:
        if category.parent_id is not None:
            parent, child = TAXONOMY.node_index[category.parent_id], TAXONOMY.node_index[category.id]
            assert (nodes[:, parent] >= nodes[:, child] - 1e-12).all()
    roots = [TAXONOMY.node_index[c.id] for c in TAXONOMY.categories if c.parent_id is None]
    np.testing.assert_allclose(nodes[:, roots].sum(axis=1), 1)


@given(some_photos, st.floats(0, 1), st.floats(0, 1))
def test_a_suggestion_never_goes_deeper_when_more_is_asked_for(photos, one, other):
    low, high = sorted((one, other))

    def depth(threshold: float) -> int:
        suggestion = decide(*photos, taxonomy=TAXONOMY, calibration=calibration(threshold, threshold, threshold))
        return sum(step.filled for step in suggestion.path)

    assert depth(high) <= depth(low)


@given(some_photos)
def test_the_path_is_consistent_and_ends_in_the_first_alternative(photos):
    suggestion = decide(*photos, taxonomy=TAXONOMY, calibration=calibration(0.5, 0.6, 0.7))
    ids = [step.category_id for step in suggestion.path]
    assert ids == [category.id for category in TAXONOMY.get_lineage(ids[-1])]
    assert ids[-1] == suggestion.alternatives[0].category_id
    filled = [step.filled for step in suggestion.path]
    assert filled == sorted(filled, reverse=True)  # thresholds that grow with depth fill no child without its parent


@given(some_photos)
def test_the_order_of_photos_changes_nothing(photos):
    backwards = tuple(logits[::-1] for logits in photos)
    one, other = (decide(*p, taxonomy=TAXONOMY, calibration=calibration(0.5)) for p in (photos, backwards))
    assert [s.category_id for s in one.path] == [s.category_id for s in other.path]
    np.testing.assert_allclose([s.probability for s in one.path], [s.probability for s in other.path])


@given(some_photos, st.integers(2, 4))
def test_photos_given_several_times_each_change_nothing(photos, times):
    repeated = tuple(np.repeat(logits, times, axis=0) for logits in photos)
    for how in ("mean", "max"):
        certified = calibration(0.5, brand_fusion=how)
        one, other = (decide(*p, taxonomy=TAXONOMY, calibration=certified) for p in (photos, repeated))
        np.testing.assert_allclose([s.probability for s in one.path], [s.probability for s in other.path])
        np.testing.assert_allclose(one.brand.probability, other.brand.probability)


@given(some_photos)
def test_under_max_a_photo_given_twice_changes_the_brand_in_nothing(photos):
    certified = calibration(0.5, brand_fusion="max")
    twice = tuple(np.concatenate([logits, logits[:1]]) for logits in photos)
    one, other = (decide(*p, taxonomy=TAXONOMY, calibration=certified).brand for p in (photos, twice))
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
        np.array([row[0] for row in rows]),
        taxonomy=TAXONOMY,
        calibration=certified,
    )
    filled = compute_prefilled(together, taxonomy=TAXONOMY, calibration=certified)
    for i, photos in enumerate(listings[:6]):
        alone = decide(*photos, taxonomy=TAXONOMY, calibration=certified)
        depth = len(alone.path)
        np.testing.assert_allclose(together.paths.scores[i, :depth], [step.probability for step in alone.path])
        assert together.brands.labels[i] == alone.brand.brand_index
        assert filled[i, :depth].tolist() == [step.filled for step in alone.path]
        assert filled[i, -1] == alone.brand.filled


@given(some_photos, st.integers(0, 6))
def test_alternatives_are_the_likeliest_leaves_in_order(photos, num_alternatives):
    certified = Calibration(certifies={})
    listed = decide(*photos, taxonomy=TAXONOMY, calibration=certified, num_alternatives=num_alternatives).alternatives
    leaves = compute_leaf_probabilities(photos[0], np.zeros(len(photos[0]), int), certified, TAXONOMY)[0]
    best = np.argsort(-leaves, kind="stable")[:num_alternatives]
    assert [a.category_id for a in listed] == [TAXONOMY.leaf_ids[i] for i in best]


@given(some_photos, st.lists(st.floats(0.3, 3), min_size=3, max_size=3))
def test_temperatures_by_depth_keep_a_distribution_over_the_tree(photos, temperatures):
    groups = np.zeros(len(photos[0]), int)
    plain, ones, refined = (
        compute_leaf_probabilities(
            photos[0], groups, Calibration(category_depth_temperatures=t, certifies={}), TAXONOMY
        )
        for t in ((), (1.0, 1.0, 1.0), tuple(temperatures))
    )
    np.testing.assert_allclose(ones, plain, atol=1e-12)
    np.testing.assert_allclose(refined.sum(axis=1), 1)
    certified = calibration(0.5, 0.6, 0.7, category_depth_temperatures=tuple(temperatures))
    steps = [step.probability for step in decide(*photos, taxonomy=TAXONOMY, calibration=certified).path]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == pytest.approx(refined.max())


def test_temperatures_by_depth_by_hand():
    # Fruit > Apple > {Gala, Fuji}, Fruit > Lemon, Tools.
    at = {leaf: i for i, leaf in enumerate(TAXONOMY.leaf_ids)}
    plain = np.empty(4)
    for leaf, probability in (("gala", 0.24), ("fuji", 0.06), ("lemon", 0.3), ("tools", 0.4)):
        plain[at[leaf]] = probability
    certified = Calibration(category_depth_temperatures=(0.5, 1.0, 0.5), certifies={})
    refined = compute_leaf_probabilities(np.log(plain)[None], np.array([0]), certified, TAXONOMY)[0]
    fruit = 0.6**2 / (0.6**2 + 0.4**2)
    gala = 0.8**2 / (0.8**2 + 0.2**2)
    assert refined[at["tools"]] == pytest.approx(1 - fruit)
    assert refined[at["lemon"]] == pytest.approx(fruit * 0.5)
    assert refined[at["gala"]] == pytest.approx(fruit * 0.5 * gala)
    assert refined[at["fuji"]] == pytest.approx(fruit * 0.5 * (1 - gala))


def test_fusing_against_plain_loops():
    rng = np.random.default_rng(0)
    logits, groups = rng.normal(size=(7, 4)), np.array([0, 1, 0, 2, 2, 2, 1])
    for how, reduce in (("mean", np.mean), ("max", np.max)):
        wanted = [reduce(logits[groups == g], axis=0) for g in range(3)]
        np.testing.assert_allclose(fuse_logits(logits, groups, how=how), wanted)


def test_temperatures_soften_without_reordering():
    logits, groups = np.array([[3.0, 1.0, 0.0, -1.0]]), np.array([0])
    sharp = compute_leaf_probabilities(logits, groups, Calibration(certifies={}), TAXONOMY)
    soft = compute_leaf_probabilities(logits, groups, Calibration(category_temperature=2, certifies={}), TAXONOMY)
    assert soft[0, 0] < sharp[0, 0]
    assert (np.argsort(soft) == np.argsort(sharp)).all()
    np.testing.assert_allclose(soft, softmax(logits / 2))


def test_a_logo_in_one_photo_wins_under_max():
    logits, groups = np.array([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 5.0, 0.0]]), np.zeros(3, int)
    by_mean = softmax(fuse_brand_logits(logits, groups, Calibration(certifies={})))
    by_max = softmax(fuse_brand_logits(logits, groups, Calibration(brand_fusion="max", certifies={})))
    assert by_max[0, 1] > by_mean[0, 1]
    assert by_max[0].argmax() == 1


def test_paths_end_where_the_leaf_ends():
    paths = predict_paths(np.array([[0, 0, 0, 1.0], [1.0, 0, 0, 0]]), TAXONOMY)
    assert paths.nodes.tolist() == [
        [TAXONOMY.node_index["tools"], -1, -1],
        [TAXONOMY.node_index[i] for i in ("fruit", "apple", "gala")],
    ]
    assert paths.scores[0].tolist() == [1, 0, 0]


def test_each_field_says_why_it_is_only_suggested():
    certified = Calibration(
        fields=(
            create_guarantee("category_depth_1", 0.5),
            create_guarantee("category_depth_2", None, "too few listings"),
        ),
        certifies={},
    )
    logits = np.array([[4.0, 0, 0, 0]]), np.array([[0.0, 9, 0]])
    suggestion = decide(*logits, taxonomy=TAXONOMY, calibration=certified)
    assert [step.filled for step in suggestion.path] == [True, False, False]
    assert suggestion.path[0].not_prefilled is None
    assert suggestion.path[1].not_prefilled == NotPrefilled(code="NOT_CERTIFIED", message="too few listings")
    assert suggestion.path[2].not_prefilled.code == "NOT_CALIBRATED"
    assert suggestion.brand.not_prefilled.code == "NOT_CALIBRATED"
    strict = decide(*logits, taxonomy=TAXONOMY, calibration=calibration(0.9999))
    below = strict.path[0].not_prefilled
    assert (below.code, below.threshold) == ("BELOW_THRESHOLD", 0.9999)
    assert "is below the certified threshold 1.000" in below.message


def test_a_void_calibration_fills_nothing_but_keeps_its_temperatures():
    voided = calibration(0.0, 0.0, 0.0, brand=0.0, category_temperature=1.5).void("weights changed")
    suggestion = decide(np.ones((1, NUM_LEAVES)), np.ones((1, NUM_BRANDS)), taxonomy=TAXONOMY, calibration=voided)
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
    made = decide(logits, np.zeros((1, 3)), taxonomy=TAXONOMY, calibration=certified)
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
        root, leaf = decide(np.log([shares]), np.zeros((1, 1)), taxonomy=tree, calibration=certified).path
        assert (root.filled, leaf.filled) == (filled, filled)
    assert root.not_prefilled.code == "ONLY_CATEGORY"
