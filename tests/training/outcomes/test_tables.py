import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.outcomes.records import SCHEMAS
from tests.support.helpers import create_small_taxonomy
from tests.support.outcome_tables import create_outcome, create_suggestion, write_tables
from training.outcomes.tables import open_tables
from vision.errors import ListingVisionError


def test_each_outcome_meets_the_last_suggestion_before_it_and_the_last_outcome_counts(tmp_path):
    url = write_tables(
        tmp_path,
        [
            create_suggestion("twice", 1, path=("tools",)),
            create_suggestion("twice", 2),
            create_suggestion("twice", 9, path=("tools",)),  # after the choice
            create_suggestion("inner", 1),
            create_suggestion("sibling", 1),
            create_suggestion("other", 1, brand=None),
        ],
        [
            create_outcome("twice", 3, "tools"),
            create_outcome("twice", 4, "gala", brand_kind="BRAND", brand_id="acme"),
            create_outcome("inner", 2, "apple"),
            create_outcome("sibling", 2, "fuji", brand_kind="NO_BRAND"),
            create_outcome("other", 2, None, brand_kind="NO_BRAND"),
            create_outcome("never suggested", 2),
        ],
    )
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        root, second, leaf, brand = map(tables.load_outcomes, tables.list_fields())
        assert root.accepted.tolist() == second.accepted.tolist() == [True, True, True]
        # Whether apple was gala is not known; fuji was not.
        assert leaf.accepted.tolist() == [False, True]
        assert brand.accepted.tolist() == [True, False, True]
        assert tables.count_unjoined() == 1


def test_a_signed_outcome_meets_the_suggestion_that_it_names(tmp_path):
    url = write_tables(
        tmp_path,
        [
            create_suggestion("a", 1, path=("fruit", "apple", "gala"), suggestion_uid="first"),
            create_suggestion("a", 2, path=("tools",), suggestion_uid="second"),
        ],
        [create_outcome("a", 3, "gala", suggestion_uid="first")],
    )
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        assert tables.load_outcomes("category_depth_3").accepted.tolist() == [True]


@pytest.mark.parametrize("status", ["MISSING", "EXPIRED", "INVALID", "OTHER_CALLER"])
def test_unverified_outcomes_count_only_when_asked_for(tmp_path, status):
    url = write_tables(
        tmp_path,
        [create_suggestion("a", 1), create_suggestion("b", 1)],
        [create_outcome("a", 2, "gala"), create_outcome("b", 2, "tools", suggestion_id_status=status)],
    )
    taxonomies = {"": create_small_taxonomy()}
    with open_tables(url, taxonomies) as tables:
        assert (tables.num_outcomes, tables.num_left_out) == (1, 1)
        assert tables.load_outcomes("category_depth_1").accepted.tolist() == [True]
    with open_tables(url, taxonomies, include_unverified=True) as tables:
        assert (tables.num_outcomes, tables.num_left_out) == (2, 0)
        assert tables.load_outcomes("category_depth_1").accepted.tolist() == [True, False]


def test_where_no_outcome_is_verified_the_error_says_what_to_do(tmp_path):
    outcomes = [create_outcome("a", 2, suggestion_id_status="MISSING")]
    url = write_tables(tmp_path, [create_suggestion("a", 1)], outcomes)
    with (
        pytest.raises(ListingVisionError, match=r"none of the 1 outcomes .* --include-unverified"),
        open_tables(url, {"": create_small_taxonomy()}),
    ):
        pass


def test_without_suggestions_the_error_names_what_records_them(tmp_path):
    with (
        pytest.raises(ListingVisionError, match=r"holds no suggestions; `serve --outcomes"),
        open_tables(str(tmp_path), {"": create_small_taxonomy()}),
    ):
        pass


def test_a_path_is_accepted_by_its_deepest_prefilled_category(tmp_path):
    url = write_tables(
        tmp_path,
        [create_suggestion(str(i), 1, filled=filled) for i, filled in enumerate((3, 2, 2, 0, 3))],
        [create_outcome(str(i), 2, chosen) for i, chosen in enumerate(("gala", "fuji", "lemon", "lemon", "apple"))],
    )
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        found = tables.load_outcomes("category_path")
    # Nothing was prefilled for the fourth; the fifth is prefilled below what the seller chose.
    assert found.accepted.tolist() == [True, True, False, False]
    assert found.filled.all()


def test_a_path_below_a_category_of_the_request_is_no_free_suggestion(tmp_path):
    suggestions = [create_suggestion(name, 1, ancestor_given=given) for name, given in (("a", True), ("b", False))]
    choices = {"brand_kind": "BRAND", "brand_id": "acme"}
    outcomes = [create_outcome(name, 2, **choices) for name in ("a", "b")]
    with open_tables(write_tables(tmp_path, suggestions, outcomes), {"": create_small_taxonomy()}) as tables:
        counts = {field: len(tables.load_outcomes(field).accepted) for field in tables.list_fields()}
        assert len(tables.load_outcomes("category_path").accepted) == 1
    assert counts == {"category_depth_1": 1, "category_depth_2": 1, "category_depth_3": 1, "brand": 2}


def test_a_listing_that_its_request_hid_is_unseen_and_files_of_earlier_versions_say_nothing_of_it(tmp_path):
    suggestions = [create_suggestion("marked", 1, hidden=True), create_suggestion("shown", 1, hidden=False)]
    outcomes = [create_outcome("marked", 2), create_outcome("shown", 2), create_outcome("old", 2)]
    url = write_tables(tmp_path, suggestions, outcomes)
    newer = ["hidden", "rule_version", "num_fillable", "brand_fillable", "ancestor_given"]
    earlier = pa.Table.from_pylist([create_suggestion("old", 1)], schema=SCHEMAS["suggestions"]).drop_columns(newer)
    pq.write_table(earlier, tmp_path / "suggestions" / "2026-01-01" / "old.parquet")
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        assert tables.load_outcomes("category_depth_1").hidden.tolist() == [True, False, False]  # marked, old, shown
        assert [row["category_hidden"] for row in tables.load_choices()] == [True, False, False]
    for name in ("0", "1"):
        (tmp_path / "suggestions" / "2026-01-01" / f"{name}.parquet").unlink()
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        assert tables.fetch_rows("SELECT hidden, num_photos FROM suggestions") == [{"hidden": None, "num_photos": 2}]
