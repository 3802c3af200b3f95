import dataclasses
import itertools

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import create_small_taxonomy
from training.data.splits import carve_calibrate, count_splits, find_untrained_leaves, save_split, split_manifest
from vision.errors import ManifestError
from vision.manifest import SPLITS, Manifest
from vision.taxonomy import Taxonomy


def create_manifest(rows):
    return Manifest.from_rows([{"photo": f"{i}.jpg", **row} for i, row in enumerate(rows)], "")


def splits(manifest):
    return manifest.column("split").to_pylist()


ids = st.integers(0, 30).map(str)


@st.composite
def listings(draw):
    """Rows of listings with one seller each, or none; the order is mixed."""
    sellers = draw(st.dictionaries(ids, st.sampled_from(["", "s1", "s2", "s3"]), min_size=1))
    chosen = draw(st.lists(st.sampled_from(sorted(sellers)), min_size=1, max_size=40))
    # One photo of a listing may lack the seller that another has.
    rows = [{"listing_id": i, "seller_id": sellers[i] if draw(st.booleans()) else ""} for i in chosen]
    return [*rows, {"listing_id": "known", "seller_id": "s0"}]


@given(listings(), st.sampled_from(["listing", "seller"]), st.integers(0, 5))
def test_what_belongs_together_stays_together(rows, by, seed):
    given_splits = splits(split_manifest(create_manifest(rows), by=by, val=0.3, test=0.3, seed=seed))
    seen: dict[tuple[str, str], str] = {}
    for row, split in zip(rows, given_splits, strict=True):
        assert split in SPLITS
        groups = [("listing", row["listing_id"])]
        if by == "seller" and row["seller_id"]:
            groups.append(("seller", row["seller_id"]))
        for group in groups:
            assert seen.setdefault(group, split) == split


@given(listings(), listings(), st.sampled_from(["listing", "seller"]))
def test_rows_that_come_later_move_no_earlier_one(rows, more, by):
    known = {row["listing_id"] for row in rows}
    added = [row for row in more if row["listing_id"] not in known]
    before = splits(split_manifest(create_manifest(rows), by=by, val=0.3, test=0.3))
    both = splits(split_manifest(create_manifest([*added, *rows]), by=by, val=0.3, test=0.3))
    assert both[len(added) :] == before


def test_a_split_is_the_same_for_ever():
    rows = [{"listing_id": f"m{i}", "split": "val"} for i in range(12)]
    assert (
        "".join(s[:2] for s in splits(split_manifest(create_manifest(rows), val=0.2, calibrate=0, test=0.3)))
        == "vatrtetrtetrvatevatetrtr"
    )


@pytest.mark.parametrize("by", ["listing", "seller"])
def test_shares_come_out_as_asked(by):
    rows = [{"listing_id": f"m{i}", "seller_id": f"u{i}"} for i in range(20_000)]
    counts = count_splits(split_manifest(create_manifest(rows), by=by, val=0.05, calibrate=0.15, test=0.2, seed=3))
    shares = {split: listings / 20_000 for split, (_, listings) in counts.items()}
    assert shares == pytest.approx({"train": 0.6, "val": 0.05, "calibrate": 0.15, "test": 0.2}, abs=0.01)


def test_more_validation_changes_no_test_split_and_another_seed_changes_all():
    manifest = create_manifest([{"listing_id": str(i)} for i in range(500)])
    few, many = (np.array(splits(split_manifest(manifest, val=val, calibrate=0, test=0.2))) for val in (0.1, 0.4))
    assert ((few == "test") == (many == "test")).all()
    other = np.array(splits(split_manifest(manifest, val=0.1, test=0.2, seed=1)))
    assert 0.05 < (few == other).mean() < 0.9


@given(
    st.lists(st.tuples(ids, st.integers(1, 28)), min_size=1, max_size=40),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
)
def test_by_time_the_newest_listings_are_judged_on(synthetic_dataset, val, calibrate, test):
    rows = [{"listing_id": i, "listed_at": f"2026-02-{day:02d}"} for i, day in synthetic_dataset]
    result = split_manifest(create_manifest(rows), by="time", val=val, calibrate=calibrate, test=test)
    newest: dict[str, int] = {}
    for i, day in synthetic_dataset:
        newest[i] = max(day, newest.get(i, 0))
    days: dict[str, list[int]] = {split: [] for split in SPLITS}
    split_of = dict(zip((i for i, _ in synthetic_dataset), splits(result), strict=True))
    for i, split in split_of.items():
        days[split].append(newest[i])
    assert len(days["test"]) == round(test * len(newest))
    # Rounded shares may ask for a listing more than there is; the oldest split then has fewer.
    assert len(days["calibrate"]) == min(round(calibrate * len(newest)), len(newest) - len(days["test"]))
    for older, newer in itertools.pairwise(SPLITS):
        if days[older] and days[newer]:
            assert max(days[older]) <= min(days[newer])
    assert [split_of[i] for i, _ in synthetic_dataset] == splits(result)


def test_times_with_zones_are_compared_as_instants():
    times = ["2026-01-01T09:00:00+09:00", "2026-01-01T00:00:01.5Z", "2025-12-31 23:00:00-02:00", "2026-01-01T00:00:02Z"]
    rows = [{"listing_id": str(i), "listed_at": time} for i, time in enumerate(times)]
    result = split_manifest(create_manifest(rows), by="time", val=0.25, calibrate=0, test=0.25)
    assert splits(result) == ["train", "train", "test", "val"]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["2026-01-01", "", ""], r"2 rows have no listed_at, the first is row 2 \(''\); fill them in"),
        (["2026-01-01", "01/02/2026"], r"1 row has .* not an ISO 8601 .* row 2 \('01/02/2026'\); write it as"),
        (["2026-01-01", "2026-13-01"], r"not an ISO 8601 .* row 2 \('2026-13-01'\)"),
        (["2026-01-01", "2026-01-02T00:00:00"], r"another kind of listed_at than row 1, which has a date.* row 2"),
        (["2026-01-01T01:00:00", "2026-01-02T00:00:00Z"], r"row 1, which has a time without a zone.* row 2"),
    ],
)
def test_times_that_cannot_be_compared_are_refused(times, said):
    rows = [{"listing_id": str(i), "listed_at": time} for i, time in enumerate(times)]
    with pytest.raises(ManifestError, match=said):
        split_manifest(create_manifest(rows), by="time")


def test_a_listing_of_two_sellers_is_refused():
    rows = [{"listing_id": "1", "seller_id": s} for s in ("a", "", "b")] + [{"listing_id": "2", "seller_id": "a"}]
    with pytest.raises(
        ManifestError, match=r"listing 1 has the sellers .*\(1 such rows in all\); give each listing one"
    ):
        split_manifest(create_manifest(rows), by="seller")
    split_manifest(create_manifest(rows), by="listing")


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1), (0, 1)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val, test):
    with pytest.raises(ManifestError, match="leave a share to train on"):
        split_manifest(create_manifest([{"listing_id": "1"}]), val=val, test=test)


def test_a_tenth_is_for_calibration_unless_told_otherwise():
    rows = [{"listing_id": f"m{i}"} for i in range(5_000)]
    counts = count_splits(split_manifest(create_manifest(rows)))
    assert counts["calibrate"][1] / 5_000 == pytest.approx(0.1, abs=0.015)


def test_by_seller_needs_sellers():
    rows = [{"listing_id": "1"}, {"listing_id": "2"}]
    with pytest.raises(ManifestError, match="no row has a seller_id; fill it in, or split by listing"):
        split_manifest(create_manifest(rows), by="seller")
    split_manifest(create_manifest([*rows, {"listing_id": "3", "seller_id": "a"}]), by="seller")


@given(
    st.lists(st.tuples(ids, st.sampled_from(SPLITS)), min_size=1, max_size=40),
    st.sets(st.sampled_from(SPLITS[1:])),
    st.sampled_from(["listing", "time"]),
)
def test_a_split_that_is_kept_loses_and_wins_no_listing(listed, keep, by):
    split_of = dict(listed)
    rows = [{"listing_id": i, "split": split_of[i], "listed_at": f"2026-01-{int(i) + 1:02d}"} for i, _ in listed]
    kept = keep & set(split_of.values())
    given_splits = splits(split_manifest(create_manifest(rows), by=by, val=0.3, test=0.2, calibrate=0.2, keep=kept))
    for row, split in zip(rows, given_splits, strict=True):
        assert (split in kept) == (row["split"] in kept)
        assert row["split"] not in kept or split == row["split"]


def test_calibrate_is_carved_out_of_train_alone():
    rows = [{"listing_id": f"m{i}", "split": SPLITS[(0, 0, 0, 1, 3)[i % 5]]} for i in range(5_000)]
    counts = count_splits(split_manifest(create_manifest(rows), calibrate=0.2, keep=["test", "val"]))
    assert (counts["val"][1], counts["test"][1]) == (1000, 1000)
    assert counts["calibrate"][1] / 3000 == pytest.approx(0.2, abs=0.03)
    assert count_splits(carve_calibrate(create_manifest(rows), share=0.2)) == counts


@pytest.mark.parametrize(
    ("num_train", "others", "is_carved"),
    [(1_000, ["val"], True), (300, ["val"], False), (300, [], True)],
)
def test_by_default_calibrate_is_carved_where_it_is_enough_to_certify_on(num_train, others, is_carved):
    found = [*others, *["train"] * num_train]
    manifest = create_manifest([{"listing_id": f"m{i}", "split": split} for i, split in enumerate(found)])
    counts = count_splits(carve_calibrate(manifest))
    assert (counts["calibrate"][1] > 0) == is_carved
    assert counts["train"][1] + counts["calibrate"][1] == num_train


def test_what_has_a_calibrate_split_or_no_train_split_is_left_alone():
    for found in (["train", "calibrate", "val"], ["", ""], ["val", "test"]):
        manifest = create_manifest([{"listing_id": str(i), "split": split} for i, split in enumerate(found)])
        assert carve_calibrate(manifest) is manifest
    manifest = create_manifest([{"listing_id": "1", "split": "train"}])
    assert carve_calibrate(manifest, share=0) is manifest


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("tset", "cannot keep split 'tset'; take one of val, calibrate, test"),
        ("train", "cannot keep split 'train'"),
        ("val", "no row has the split 'val' that is to be kept"),
        ("test", r"listing 1 has photos in the split test, which is kept, and in another one \(1 such rows"),
    ],
)
def test_a_split_that_cannot_be_kept_is_named(keep, said):
    manifest = create_manifest([{"listing_id": "1", "split": "test"}, {"listing_id": "1", "split": "train"}])
    with pytest.raises(ManifestError, match=said):
        split_manifest(manifest, keep=[keep])


@pytest.mark.parametrize("place", ["{}/new/folder", "memory://{}/new"])
def test_a_split_is_written_with_its_taxonomy_to_a_new_folder(tmp_path, place):
    output = place.format(tmp_path) + "/manifest.parquet"
    manifest = Manifest.from_rows([{"listing_id": "1", "photo": "a.jpg"}], "/photos")
    save_split(manifest, create_small_taxonomy(), output)
    save_split(manifest, create_small_taxonomy(), output)
    assert Manifest.load(output).get_photo_url(0) == "/photos/a.jpg"
    fs, path = fsspec.core.url_to_fs(output)
    beside = path.replace("manifest.parquet", "taxonomy.json")
    assert Taxonomy.from_json(fs.cat_file(beside).decode()) == create_small_taxonomy()
    other = dataclasses.replace(create_small_taxonomy(), version="small-2")
    with pytest.raises(ManifestError, match="is another taxonomy than the manifest's"):
        save_split(manifest, other, output)


def test_leaves_that_are_judged_but_not_trained_are_named():
    held = [("gala", "val"), ("Fruit > Apple > Fuji", "test"), ("fruit", "val"), ("nonsense", "val"), ("", "test")]
    rows = [
        {"category": category, "split": split} for category, split in [*held, ("fuji", "train"), ("tools", "train")]
    ]
    manifest = create_manifest([{"listing_id": str(i), **row} for i, row in enumerate(rows)])
    assert find_untrained_leaves(manifest, create_small_taxonomy()) == ["Fruit > Apple > Gala"]


def test_counts_are_of_photos_and_listings():
    rows = [("a", "train"), ("a", "train"), ("b", "train"), ("c", "test")]
    manifest = create_manifest([{"listing_id": i, "split": split} for i, split in rows])
    assert count_splits(manifest) == {"train": (3, 2), "val": (0, 0), "calibrate": (0, 0), "test": (1, 1)}
