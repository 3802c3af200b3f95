"""Which records are evidence: of one rule, marked before the answer, with an outcome in time or without."""

from types import SimpleNamespace

import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.outcome_tables import DAY_US, create_outcome, create_suggestion, write_tables
from training.outcomes.hidden_listings import load_hidden_listings
from training.outcomes.tables import open_tables
from vision.errors import ListingVisionError
from vision.manifest import UNLABELLED
from vision.taxonomy import OTHER_BRAND

TAXONOMY = create_small_taxonomy()
BUNDLE = SimpleNamespace(rule_version="ours", taxonomy=TAXONOMY)


def create_hidden(listing_id, day, **more):
    fields = {"hidden": True, "rule_version": "ours", "num_fillable": 3, "brand_fillable": True}
    return create_suggestion(listing_id, day, **(fields | more))


def load(tmp_path, suggestions, outcomes, *, after_day=0, until_day=50):
    url = write_tables(tmp_path, suggestions, outcomes)
    with open_tables(url, {"": TAXONOMY}) as tables:
        return load_hidden_listings(
            tables, BUNDLE, wait_days=14, after_us=after_day * DAY_US, until_us=until_day * DAY_US
        )


def name_chosen(listings):
    nodes = listings.labels.category_nodes.tolist()
    return [None if node == UNLABELLED else TAXONOMY.categories[node].id for node in nodes]


def test_listings_stand_in_the_order_of_their_first_suggestion_with_their_last_outcome_in_time(tmp_path):
    listings = load(
        tmp_path,
        [
            create_hidden("b", 2, path=("fruit", "lemon"), p=0.7, num_fillable=1),
            create_hidden("a", 3, path=("tools",), p=0.4),
            create_hidden("a", 4, path=("fruit", "apple", "gala"), p=0.8, brand=None),
            create_hidden("a", 9, path=("tools",)),  # after the choice
            create_hidden("late", 5),
            create_hidden("never", 6),
            create_hidden("young", 51),
        ],
        [
            create_outcome("a", 5, "fuji"),
            create_outcome("a", 6, "gala"),
            create_outcome("b", 16, "lemon"),
            create_outcome("late", 20, "gala"),
            create_outcome("young", 52, "gala"),
        ],
    )
    assert (listings.first_us // DAY_US).tolist() == [2, 3, 5, 6]
    assert name_chosen(listings) == ["lemon", "gala", None, None]
    assert listings.paths.num_fillable.tolist() == [1, 3, 3, 3]
    assert listings.paths.scores[:2].tolist() == [[0.7, 0.7, 0.0], [0.8, 0.8, 0.8]]
    assert listings.paths.nodes[0].tolist() == [TAXONOMY.node_index["fruit"], TAXONOMY.node_index["lemon"], -1]
    assert listings.brands.labels.tolist() == [1, 0, 1, 1]


def test_a_seller_who_was_shown_a_suggestion_after_all_has_chosen_nothing_for_us(tmp_path):
    listings = load(
        tmp_path,
        [
            *(create_hidden(name, 1) for name in ("marked", "reported", "shown", "shown later", "brand alone")),
            create_hidden("shown", 2, hidden=False),
            create_hidden("shown later", 4, hidden=False),
        ],
        [
            create_outcome("marked", 3, "gala", treatment="HIDDEN"),
            create_outcome("reported", 3, "gala", treatment="PREFILLED"),
            create_outcome("shown", 3, "gala"),
            create_outcome("shown later", 3, "gala"),
            create_outcome("brand alone", 3, "gala", category_treatment="SUGGESTED", brand_kind="NO_BRAND"),
        ],
    )
    assert name_chosen(listings) == [None, "gala", None, None, "gala"]  # in the order of their names
    assert listings.labels.brands.tolist()[0] == 0


def test_brands_are_those_that_sellers_chose_or_wrote(tmp_path):
    chosen = {
        "a": {"brand_kind": "BRAND", "brand_id": "zeta"},
        "b": {"brand_kind": "NO_BRAND"},
        "c": {"brand_kind": "OTHER", "brand_name": "acme corp"},
        "d": {"brand_kind": "OTHER", "brand_name": "Hand made"},
        "e": {},
    }
    listings = load(
        tmp_path,
        [create_hidden(name, 1) for name in chosen],
        [create_outcome(name, 2, **brand) for name, brand in chosen.items()],
    )
    assert listings.labels.brands.tolist() == [2, 0, 1, OTHER_BRAND, UNLABELLED]


def test_suggestions_of_another_rule_are_left_out_by_name(tmp_path):
    others = [
        create_hidden(str(i), 1, rule_version="theirs", version="m2", calibration_version="c" * 12) for i in (1, 2)
    ]
    listings = load(tmp_path / "some", [create_hidden("a", 1), *others], [create_outcome("a", 2)])
    assert (len(listings.first_us), listings.num_other) == (1, {"m2.cccccc": 2})
    with pytest.raises(ListingVisionError, match=r"by the rule of this bundle, ours, but by others: m2\.cccccc \(2\)"):
        load(tmp_path / "all", others, [create_outcome("1", 2)])


def test_listings_that_are_only_reported_as_hidden_are_refused(tmp_path):
    suggestions = [create_hidden("a", 1, hidden=None), create_hidden("b", 1, hidden=False)]
    with pytest.raises(ListingVisionError, match="no suggestion was marked as hidden by its request"):
        load(tmp_path, suggestions, [create_outcome("a", 2, treatment="HIDDEN"), create_outcome("b", 2)])


def test_outcomes_without_a_valid_suggestion_id_do_not_count(tmp_path):
    outcomes = [create_outcome("a", 2), create_outcome("b", 2, suggestion_id_status="INVALID")]
    listings = load(tmp_path, [create_hidden("a", 1), create_hidden("b", 1)], outcomes)
    assert name_chosen(listings) == ["gala", None]


def test_listings_that_are_counted_already_are_not_read_again(tmp_path):
    suggestions = [create_hidden(str(day), day) for day in (1, 2, 3)] + [create_hidden("1", 2.5)]
    listings = load(tmp_path, suggestions, [create_outcome("2", 4)], after_day=2)
    assert (listings.first_us // DAY_US).tolist() == [3]
