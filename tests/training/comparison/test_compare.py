import dataclasses

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.two_models import compare_rows, create_listings, model
from training.comparison.common_listings import ExcludedLabel
from training.comparison.compare import LEAF, compare
from training.evaluation.evaluate import evaluate
from training.inference.predictions import Predictions
from vision.decision import decide
from vision.taxonomy import Brand, Category, Taxonomy

TAXONOMY = create_small_taxonomy()
A = B = model(TAXONOMY)


def figures(comparison, name):
    counts = comparison.field(name).counts
    return counts.num_listings, counts.num_right_a, counts.num_right_b, counts.num_lost, counts.num_won


def test_every_field_by_hand():
    comparison = compare_rows(
        [
            ("gala", "Acme", ("gala", 1), ("fuji", 1)),  # lost at the leaf, right above it
            ("lemon", "Acme", ("gala", 2), ("lemon", 1)),  # won, category and brand
            ("tools", "no brand", ("tools", 0), ("tools", 0)),
            ("apple", "", ("fuji", 1), ("lemon", 1)),  # an inner label: no leaf, but depths 1 and 2
            ("", "Zeta", ("gala", 2), ("gala", 1)),  # brand lost
        ],
        A,
        B,
    )
    assert figures(comparison, LEAF) == (3, 2, 2, 1, 1)
    assert figures(comparison, "category_depth_1") == (4, 4, 4, 0, 0)
    assert figures(comparison, "category_depth_2") == (3, 2, 2, 1, 1)
    assert figures(comparison, "category_depth_3") == (1, 1, 0, 1, 0)
    assert figures(comparison, "brand") == (4, 3, 3, 1, 1)
    assert comparison.num_listings == 5
    assert not comparison.excluded_labels


def test_evaluate_and_compare_give_the_same_filled_figures():
    rows = [("gala", "acme", ("gala", 1), "gala")] * 5 + [("lemon", "", ("gala", 1), "gala"), ("", "", "fuji", "fuji")]
    rows += [("apple", "zeta", ("fuji", 2, 0.1), "gala")]
    certified = model(TAXONOMY, thresholds={"category_path": 0.8, "category_depth_2": 0.6, "brand": 0.6})
    listings = create_listings(rows, certified, certified)
    predictions = Predictions(
        category_logits=listings.a.category,
        brand_logits=listings.a.brand,
        scope_scores=listings.a.scope,
        labels=listings.labels.in_a,
        groups=listings.groups,
        listing_ids=listings.listing_ids,
        photo_urls=listings.photo_urls,
        unusable=(),
    )
    evaluated = evaluate(predictions, taxonomy=TAXONOMY, calibration=certified.calibration)["listing"]["fields"]
    compared = {change.name: change.a for change in compare(certified, certified, listings).coverage}
    assert evaluated["category_path"]["coverage"] == 7 / 8
    for name, field in evaluated.items():
        assert field["num_filled"] == compared[name].num_filled
        assert field["coverage"] == compared[name].coverage
        assert field["precision"] == pytest.approx(compared[name].precision, nan_ok=True)


def test_categories_have_counts_intervals_and_adjusted_p_values():
    rows = [("gala", "", "gala", "fuji")] * 8 + [("gala", "", "gala", "gala")] * 2
    rows += [("lemon", "", "gala", "lemon")] * 5 + [("tools", "", "tools", "tools")] * 4
    gala, tools, lemon = compare_rows(rows, A, B).categories
    assert (gala.name, gala.category_id, lemon.category_id) == ("Fruit > Apple > Gala", "gala", "lemon")
    assert (gala.counts.num_lost, gala.counts.num_listings, lemon.counts.num_won) == (8, 10, 5)
    assert gala.counts.p_value == pytest.approx(2 / 256)
    assert gala.p_holm == pytest.approx(3 * 2 / 256)
    assert lemon.p_holm == pytest.approx(2 * 2 / 32)
    assert tools.p_holm == 1
    assert gala.interval[1] < 0 < lemon.interval[0]
    assert tools.interval[0] < 0 < tools.interval[1]


def test_flips_are_listed_the_surest_mistake_first():
    rows = [
        ("gala", "", ("gala", 0, 5.0), ("fuji", 0, 1.0)),
        ("gala", "", ("gala", 0, 5.0), ("lemon", 0, 8.0)),
        ("lemon", "Acme", ("fuji", 2, 5.0), ("lemon", 1, 8.0)),
        ("lemon", "Acme", ("fuji", 1, 5.0), ("fuji", 1, 8.0)),  # both wrong: no flip
    ]
    sure = model(TAXONOMY, thresholds={"category_depth_1": 0.1, "category_depth_2": 0.99, "brand": 0.99})
    flips = compare_rows(rows, A, sure).flips
    assert [(f.field, f.listing, f.won) for f in flips] == [
        ("category", 1, False),
        ("category", 0, False),
        ("category", 2, True),
        ("brand", 2, True),
    ]
    lost, _, won, brand = flips
    assert (lost.truth, lost.predicted_a, lost.predicted_b) == (
        "Fruit > Apple > Gala",
        "Fruit > Apple > Gala",
        "Fruit > Lemon",
    )
    assert lost.probability_b == pytest.approx(np.exp(8) / (np.exp(8) + 3))
    assert (won.filled_a, won.filled_b, brand.filled_a, brand.filled_b) == (False, True, False, True)
    assert (brand.truth, brand.predicted_a, brand.predicted_b) == ("Acme", "Zeta", "Acme")


def test_coverage_and_precision_of_what_is_filled():
    thresholds = {"category_depth_1": 0.9, "brand": 0.9}
    a, b = model(TAXONOMY, thresholds=thresholds), model(TAXONOMY, thresholds={"category_depth_1": 0.9, "brand": None})
    comparison = compare_rows(
        [
            ("gala", "Acme", ("gala", 1), ("lemon", 1)),
            ("tools", "Acme", ("gala", 2), ("gala", 1, 0.1)),  # A fills wrongly, B asks
            ("", "", ("gala", 1), ("gala", 1)),  # filled, but who knows whether rightly
            ("gala", "Bogus", ("gala", 1), ("gala", 1)),  # a brand that the taxonomy lacks: any brand is wrong
        ],
        a,
        b,
    )
    by_name = {change.name: change for change in comparison.coverage}
    assert list(by_name) == ["category_depth_1", "category_depth_2", "category_depth_3", "brand"]
    depth, brand = by_name["category_depth_1"], by_name["brand"]
    assert (depth.a.coverage, depth.a.num_known, depth.a.precision) == (1, 3, pytest.approx(2 / 3))
    assert (depth.b.coverage, depth.b.num_known, depth.b.precision) == (0.75, 2, 1)
    assert (brand.a.num_filled, brand.a.num_known, brand.a.precision) == (4, 3, pytest.approx(1 / 3))
    assert (brand.b.num_filled, brand.b.threshold) == (0, None)
    assert by_name["category_depth_2"].a.alpha is None


def test_answers_are_those_of_serving():
    thresholds = {"category_depth_1": 0.6, "category_depth_2": 0.6, "category_depth_3": 0.6, "brand": 0.6}
    a, b = model(TAXONOMY, thresholds=thresholds), model(TAXONOMY)
    rng = np.random.default_rng(0)
    listings = create_listings([("gala", "Acme", "gala", "gala")] * 40, a, b)
    listings = dataclasses.replace(
        listings,
        a=listings.a._replace(
            category=rng.normal(size=(40, 4)).astype(np.float32) * 3, brand=rng.normal(size=(40, 3)).astype(np.float32)
        ),
        groups=np.arange(40) // 2,
        labels=create_listings([("gala", "Acme", "gala", "gala")] * 20, a, b).labels,
        listing_ids=tuple(f"l{i}" for i in range(20)),
    )
    comparison = compare(a, b, listings)
    suggestions = [
        decide(
            listings.a.category[at : at + 2],
            listings.a.brand[at : at + 2],
            listings.a.scope[at : at + 2],
            taxonomy=TAXONOMY,
            calibration=a.calibration,
        )
        for at in range(0, 40, 2)
    ]
    assert comparison.field(LEAF).counts.num_right_a == sum(s.path[-1].category_id == "gala" for s in suggestions)
    assert comparison.field("brand").counts.num_right_a == sum(s.brand.brand_index == 1 for s in suggestions)
    filled = {change.name: change.a.num_filled for change in comparison.coverage}
    assert filled["category_depth_2"] == sum(len(s.path) > 1 and s.path[1].filled for s in suggestions)
    assert filled["brand"] == sum(s.brand.filled for s in suggestions)


def categories(*pairs):
    return tuple(Category(id=i, names={"en": i.title()}, parent_id=p) for i, p in pairs)


NEWER = Taxonomy(
    version="small-2",
    # Galas are told apart, lemons have moved, tools are gone, and the order is another.
    categories=categories(
        ("citrus", None),
        ("lemon", "citrus"),
        ("fruit", None),
        ("apple", "fruit"),
        ("fuji", "apple"),
        ("gala", "apple"),
        ("royal-gala", "gala"),
        ("mondial-gala", "gala"),
    ),
    brands=(Brand(id="zeta", names={"en": "Zeta"}), Brand(id="nova", names={"en": "Nova"})),
)


def test_taxonomies_are_compared_by_id_on_what_both_know():
    newer = model(NEWER)
    comparison = compare_rows(
        [
            ("fuji", "Zeta", ("fuji", 2), ("royal-gala", 1)),
            ("lemon", "Zeta", ("gala", 1), ("lemon", 1)),
            ("gala", "Acme", ("gala", 1), ("royal-gala", 1)),  # a leaf of A only; B lacks the brand
            ("tools", "Nova", ("tools", 1), ("fuji", 2)),
        ],
        A,
        newer,
    )
    assert figures(comparison, LEAF) == (2, 1, 1, 1, 1)
    # At its second depth B has another parent for lemons, at the first another root.
    assert figures(comparison, "category_depth_1") == (2, 2, 2, 0, 0)
    assert figures(comparison, "category_depth_2") == (3, 2, 3, 0, 1)
    assert figures(comparison, "category_depth_3") == (2, 2, 1, 1, 0)
    assert figures(comparison, "brand") == (2, 1, 2, 0, 1)
    assert {change.category_id for change in comparison.categories} == {"fuji", "lemon"}
    assert set(comparison.excluded_labels) == {
        ExcludedLabel(field="category", label="tools", reason="unknown to B", num_listings=1),
        ExcludedLabel(field="category", label="Fruit > Apple > Gala", reason="a leaf of A only", num_listings=1),
        ExcludedLabel(field="brand", label="Acme", reason="unknown to B", num_listings=1),
        ExcludedLabel(field="brand", label="Nova", reason="unknown to A", num_listings=1),
    }
    brands = [flip for flip in comparison.flips if flip.field == "brand"]
    assert [(flip.truth, flip.predicted_a, flip.predicted_b) for flip in brands] == [("Zeta", "Acme", "Zeta")]


def test_swapping_the_models_mirrors_the_figures():
    newer = model(NEWER)
    rows = [("fuji", "Zeta", ("fuji", 2), ("royal-gala", 1)), ("lemon", "Zeta", ("gala", 1), ("lemon", 1))] * 3
    there = compare_rows(rows, A, newer)
    back = compare_rows([(c, b, of_b, of_a) for c, b, of_a, of_b in rows], newer, A)
    for field in there.fields:
        mirrored = back.field(field.name).counts
        assert (field.counts.num_lost, field.counts.num_won) == (mirrored.num_won, mirrored.num_lost)
        assert field.counts.change == -mirrored.change


def test_a_path_is_compared_by_its_deepest_prefilled_category():
    a, b = model(TAXONOMY, thresholds={"category_path": 0.9}), model(TAXONOMY)
    rows = [
        ("gala", "", ("gala", 1), ("gala", 1)),
        ("fuji", "", ("gala", 1), ("gala", 1)),
        ("apple", "", ("gala", 1), ("gala", 1)),  # filled below what its label tells
        ("", "", ("gala", 1), ("gala", 1)),
    ]
    path = compare_rows(rows, a, b).coverage[0]
    assert (path.name, path.a.num_filled, path.a.num_known, path.a.num_right) == ("category_path", 4, 3, 1)
    assert (path.a.alpha, path.b.alpha, path.b.num_filled) == (0.05, None, 0)
