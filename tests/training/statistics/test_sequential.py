"""The statistics against simulations and references, and the report against files like those of a gateway."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from serving.outcomes.records import SCHEMAS
from tests.conftest import ROOT
from tests.support.helpers import create_small_taxonomy
from training.outcomes.manifest import manifest_of_outcomes
from training.outcomes.report import PROMISE_METRICS, format_metrics, format_report, make_report
from training.outcomes.tables import opened_tables
from training.statistics.sequential import (
    SAMPLE_RATIO_ALPHA,
    confidence_sequence,
    difference_sequence,
    paired_sequence,
    population_stability,
    promise_kept,
    sample_ratio_p_value,
    spread_of,
    wilson,
)
from vision.calibration import Calibration, FieldGuarantee
from vision.errors import ListingVisionError, ManifestError
from vision.manifest import Manifest
from vision.taxonomy import Category

DAY_US = 86_400_000_000


def test_a_mean_leaves_its_confidence_sequence_in_fewer_than_one_of_twenty_experiments():
    random, missed = np.random.default_rng(0), 0
    for _ in range(300):
        low, high = confidence_sequence(random.random(2000) < 0.8)
        missed += bool(((low > 0.8) | (high < 0.8)).any())  # looked at after every value
    assert missed <= 0.05 * 300


def test_daily_looks_at_two_equal_versions_cry_wolf_in_fewer_than_one_of_twenty_experiments():
    random, alarms = np.random.default_rng(1), 0
    for _ in range(200):
        a, b = random.random((2, 3000)) < 0.7
        looks = [difference_sequence(a[:n], b[:n]) for n in range(100, 3001, 100)]
        alarms += any(low > 0 or high < 0 for low, high in looks)
    assert alarms <= 0.05 * 200


def test_a_real_difference_is_found_and_its_bounds_hold_it():
    random = np.random.default_rng(2)
    found = difference_sequence(random.random(6000) < 0.70, random.random(6000) < 0.80)
    assert 0 < found.low < 0.10 < found.high
    assert difference_sequence([], [1.0]).low < 0 < difference_sequence([], [1.0]).high


def test_more_outcomes_never_widen_a_sequence():
    low, high = confidence_sequence(np.random.default_rng(3).random(500) < 0.5)
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()


def test_a_broken_split_is_found_and_a_fair_one_is_not():
    random = np.random.default_rng(4)
    shares = {"a": 0.95, "b": 0.05}
    fair = [random.binomial(20_000, 0.05) for _ in range(300)]
    values = [sample_ratio_p_value({"a": 20_000 - n, "b": n}, shares) for n in fair]
    assert sum(value < SAMPLE_RATIO_ALPHA for value in values) <= 2
    assert sample_ratio_p_value({"a": 19_200, "b": 800}, shares) < SAMPLE_RATIO_ALPHA
    assert sample_ratio_p_value({}, shares) == 1.0


def test_a_promise_is_broken_only_beyond_doubt():
    assert promise_kept(0, 0, precision=0.95) is None
    assert promise_kept(45, 50, precision=0.95)  # 90 %, and 95 % is still possible
    assert not promise_kept(450, 500, precision=0.95)
    assert promise_kept(500, 500, precision=0.99)
    for right, num in ((450, 500), (95, 100)):
        upper = stats.binomtest(right, num, alternative="less").proportion_ci(0.95, method="exact").high
        assert promise_kept(right, num, precision=upper - 1e-9)
        assert not promise_kept(right, num, precision=upper + 1e-9)


def test_stability_is_nothing_for_alike_and_large_for_shifted_values():
    random = np.random.default_rng(5)
    reference = random.normal(size=5000)
    spread = spread_of(reference)
    assert sum(spread.shares) == pytest.approx(1)
    assert np.allclose(spread.shares, 0.1, atol=0.001)
    assert population_stability(spread, random.normal(size=5000)) < 0.02
    assert population_stability(spread, random.normal(1.0, 1.0, 5000)) > 0.25
    assert population_stability(spread, np.array([])) == 0.0
    assert population_stability(spread_of([]), reference) == 0.0
    # One value for nearly all: its bins fall together.
    alike = spread_of([1.0] * 95 + [2.0] * 5)
    assert alike.shares == (0.0, 1.0)
    assert population_stability(alike, np.array([1.0] * 100)) < 0.01
    assert population_stability(alike, np.array([0.0] * 100)) > 0.25
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=2e-3)


def test_pairs_are_held_against_each_other():
    random = np.random.default_rng(7)
    a = random.random(4000) < 0.7
    b = a | (random.random(4000) < 0.2)  # right wherever a is
    found = paired_sequence(a, b)
    assert 0 < found.low < float(b.mean() - a.mean()) < found.high
    apart = difference_sequence(a, b)
    assert found.high - found.low < apart.high - apart.low
    assert paired_sequence([], []) == (-1, 1)


def suggestion(
    listing_id, day, *, version="old", path=("fruit", "apple", "gala"), filled=3, brand="acme", p=0.9, **more
):
    row = dict.fromkeys(SCHEMAS["suggestions"].names)
    return (
        row
        | {
            "time": int(day * DAY_US),
            "listing_id": listing_id,
            "model_version": version,
            "category_ids": list(path),
            "category_probabilities": [p] * len(path),
            "num_filled": filled,
            "brand_kind": "BRAND" if brand else "NO_BRAND",
            "brand_id": brand,
            "brand_probability": p,
            "brand_filled": False,
            "num_photos": 2,
            "num_unusable": 0,
            "read_photo": 1000,
        }
        | more
    )


def outcome(listing_id, day, category="gala", *, treatment="UNSPECIFIED", **more):
    row = dict.fromkeys(SCHEMAS["outcomes"].names)
    said = {"category_treatment": treatment, "brand_treatment": treatment}
    return row | {"time": int(day * DAY_US), "listing_id": listing_id, "category_id": category} | said | more


def write_tables(folder, suggestions, outcomes, shadows=()):
    for table, rows in (("suggestions", suggestions), ("outcomes", outcomes), ("shadows", shadows)):
        if not rows:
            continue
        (folder / table / "2026-01-01").mkdir(parents=True)
        for part in (0, 1):  # files of two processes
            path = folder / table / "2026-01-01" / f"{part}.parquet"
            pq.write_table(pa.Table.from_pylist(rows[part::2], schema=SCHEMAS[table]), path)
    return str(folder)


def calibration(**thresholds):
    fields = tuple(
        FieldGuarantee(
            name=n,
            alpha=0.05,
            delta=0.01,
            threshold=t,
            num_listings=9,
            num_filled=9,
            num_errors=0,
            uncertified_reason="",
        )
        for n, t in thresholds.items()
    )
    return Calibration(fields=fields, certifies={})


def test_each_outcome_meets_the_last_suggestion_before_it_and_the_last_outcome_counts(tmp_path):
    url = write_tables(
        tmp_path,
        [
            suggestion("twice", 1, path=("tools",)),
            suggestion("twice", 2),
            suggestion("twice", 9, path=("tools",)),  # after the choice
            suggestion("inner", 1),
            suggestion("sibling", 1),
            suggestion("other", 1, brand=None),
        ],
        [
            outcome("twice", 3, "tools"),
            outcome("twice", 4, "gala", brand_kind="BRAND", brand_id="acme"),
            outcome("inner", 2, "apple"),
            outcome("sibling", 2, "fuji", brand_kind="NO_BRAND"),
            outcome("other", 2, None, brand_kind="NO_BRAND"),
            outcome("never suggested", 2),
        ],
    )
    with opened_tables(url, {"": create_small_taxonomy()}) as tables:
        root, second, leaf, brand = map(tables.outcomes_of, tables.fields())
        assert root.accepted.tolist() == second.accepted.tolist() == [True, True, True]
        # Whether apple was gala is not known; fuji was not.
        assert leaf.accepted.tolist() == [False, True]
        assert brand.accepted.tolist() == [True, False, True]
        assert tables.num_unjoined() == 1


@pytest.fixture
def two_versions(tmp_path):
    """The new version is right more often; the old one's fills are wrong of late; photos have changed."""
    random = np.random.default_rng(6)
    suggestions, outcomes = [], []
    for number in range(6000):
        day, version = number / 200, "new" if number % 2 else "old"
        late = day > 22
        right = random.random() < (0.96 if version == "new" else 0.80 if late else 0.93)
        more = {"read_photo": 4000 if late else 1000 + number % 7}
        suggestions.append(suggestion(str(number), day, version=version, p=0.7 + 0.2 * random.random(), **more))
        hidden = "HIDDEN" if number % 10 == 0 else "UNSPECIFIED"
        outcomes.append(outcome(str(number), day + 0.1, "gala" if right else "lemon", treatment=hidden))
    return write_tables(tmp_path / "outcomes", suggestions, outcomes)


def test_the_report_names_what_is_better_broken_and_drifting(two_versions):
    promises = {version: calibration(category_depth_3=0.8) for version in ("old", "new")}
    with opened_tables(two_versions, {"": create_small_taxonomy()}) as tables:
        report = make_report(tables, promises=promises, control="old", shares={"old": 0.5, "new": 0.5})
    by_name = {(one.field, one.release): one for one in report.fields}
    leaf = by_name["category_depth_3", "old"]
    assert (leaf.num_outcomes, leaf.num_hidden) == (3000, 600)
    assert leaf.accepted_interval.low < leaf.accepted < leaf.accepted_interval.high
    assert by_name["category_depth_1", "old"].accepted == 1.0  # lemon is a fruit
    assert report.switch_off == ["category_depth_3 of old"]
    verdicts = {one.field: one.verdict for one in report.comparisons}
    assert verdicts == {
        "category_depth_1": "not yet told apart",
        "category_depth_2": "better",
        "category_depth_3": "better",
    }
    assert report.sample_ratio_p_value == pytest.approx(1.0)
    assert report.drift["bytes_per_photo"] > 0.25 > 0.1 > report.drift["leaf_probability"]
    text = format_report(report)
    assert "switch off: category_depth_3 of old no longer keeps its promise" in text
    assert "drift of bytes_per_photo" in text
    assert json.loads(json.dumps(report.to_dict()))["switch_off"] == report.switch_off


def shadow(listing_id, day, **more):
    row = suggestion(listing_id, day, version="shadow", **more) | {"answered_model_version": "old"}
    return {name: row[name] for name in SCHEMAS["shadows"].names}


def test_a_shadow_is_held_against_what_was_answered_for_the_same_listings(tmp_path):
    listings = [str(number) for number in range(200)]
    chosen = ["gala" if int(name) % 4 else "fuji" for name in listings]  # gala was answered each time
    treatments = ["HIDDEN" if int(name) % 2 else "UNSPECIFIED" for name in listings]
    url = write_tables(
        tmp_path,
        [suggestion(name, 1) for name in listings],
        [outcome(name, 2, c, treatment=t) for name, c, t in zip(listings, chosen, treatments, strict=True)],
        # It would have been right each time but for the last twenty listings, which it never saw.
        [shadow(name, 1.5, path=("fruit", "apple", c)) for name, c in zip(listings[:-20], chosen, strict=False)],
    )
    with opened_tables(url, {"": create_small_taxonomy()}) as tables:
        report = make_report(tables, promises={})
    (same,) = report.shadow_agreement.items()
    assert same == ("shadow", (180, pytest.approx(0.75)))
    assert {one.release for one in report.shadows} == {"shadow"}
    by_part = {(one.field, one.unseen): one for one in report.shadows}
    leaf = by_part["category_depth_3", False]
    assert (leaf.num_outcomes, leaf.accepted, leaf.given_accepted) == (180, 1.0, pytest.approx(0.75))
    assert leaf.interval.low < 0.25 < leaf.interval.high
    unseen = by_part["category_depth_3", True]
    assert (unseen.num_outcomes, unseen.accepted, unseen.given_accepted) == (90, 1.0, 1.0)
    assert report.listings_by_release == {"old": 200}  # nobody was answered by it
    assert "shadow shadow: 75.0% of 180 answers were the caller's" in format_report(report)


def test_promises_are_told_to_prometheus(two_versions):
    promises = {version: calibration(category_depth_3=0.8) for version in ("old", "new")}
    with opened_tables(two_versions, {"": create_small_taxonomy()}) as tables:
        text = format_metrics(make_report(tables, promises=promises))
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}
    assert set(families) == set(PROMISE_METRICS)
    kept = {(s.labels["field"], s.labels["model_release"]): s.value for s in families["listing_vision_guarantee_met"]}
    assert kept == {("category_depth_3", "old"): 0, ("category_depth_3", "new"): 1}


def test_drift_is_measured_from_what_the_bundle_was_made_from(two_versions):
    expected = {
        "bytes_per_photo": spread_of(np.arange(500.0, 504)),
        "leaf_probability": spread_of(np.linspace(0.7, 0.9, 200)),
    }
    promises = {"old": replace(calibration(category_depth_3=0.8), expected=expected)}
    with opened_tables(two_versions, {"": create_small_taxonomy()}) as tables:
        report = make_report(tables, promises=promises)
    found = report.drift_from_bundle
    assert found.keys() == {"old"}  # of the other release no bundle is given
    assert found["old"]["bytes_per_photo"] > 0.25 > found["old"]["leaf_probability"]
    assert "drift of bytes_per_photo, old lately against its bundle:" in format_report(report)


def test_two_calibrations_of_the_same_weights_are_two_releases(tmp_path):
    url = write_tables(
        tmp_path,
        [suggestion(str(n), 1, version="w", calibration_version="aaaaaabb" if n % 2 else "cccccc") for n in range(10)],
        [outcome(str(n), 2) for n in range(10)],
    )
    with opened_tables(url, {"": create_small_taxonomy()}) as tables:
        report = make_report(tables, promises={"w.aaaaaa": calibration(category_depth_3=0.8)})
    assert report.listings_by_release == {"w.aaaaaa": 5, "w.cccccc": 5}
    promised = {one.release: one.promised for one in report.fields if one.field == "category_depth_3"}
    assert promised == {"w.aaaaaa": 0.95, "w.cccccc": None}


def test_each_release_is_judged_by_its_own_tree(tmp_path):
    old = create_small_taxonomy()
    # In the new one a leaf has moved, and there is one that the old one lacks.
    moved = [replace(c, parent_id="pome") if c.id == "gala" else c for c in old.categories]
    more = [Category(id=i, names={"en": i}, parent_id=p) for i, p in (("pome", "fruit"), ("pear", "pome"))]
    new = replace(old, categories=(*moved, *more))
    url = write_tables(
        tmp_path,
        [suggestion(i, 1) for i in "ab"]
        + [suggestion(i, 1, version="new", path=("fruit", "pome", "gala")) for i in "cd"],
        [outcome(i, 2) for i in "ac"] + [outcome(i, 2, "pear") for i in "bd"],
    )
    with opened_tables(url, {"old": old, "new": new}) as tables:
        report = make_report(tables, promises={})
    accepted = {(one.field, one.release): (one.num_outcomes, one.accepted) for one in report.fields}
    for release in ("old", "new"):
        assert accepted["category_depth_1", release] == (2, 1.0)
        assert accepted["category_depth_3", release] == (2, 0.5)
    assert accepted["category_depth_2", "new"] == (2, 1.0)
    assert accepted["category_depth_2", "old"] == (2, 0.5)


@pytest.mark.parametrize("wrong", [{"control": "odl"}, {"shares": {"odl": 0.5}}])
def test_a_release_that_has_answered_nothing_is_named(two_versions, wrong):
    with (
        opened_tables(two_versions, {"": create_small_taxonomy()}) as tables,
        pytest.raises(ListingVisionError, match=r"--\w+ odl: no such release answered; there are new, old"),
    ):
        make_report(tables, promises={}, **wrong)


def test_the_next_manifest_keeps_what_was_seen_apart(tmp_path):
    url = write_tables(
        tmp_path / "outcomes",
        [suggestion(name, 1) for name in "abcd"],
        [
            outcome("a", 2, brand_kind="OTHER", brand_name=" acme CORP "),
            outcome("b", 2, None, brand_kind="OTHER", brand_name="Newcomer"),
            outcome("c", 2, "fuji", treatment="HIDDEN", brand_kind="NO_BRAND"),
            outcome("d", 2, "lemon"),
        ],
    )
    photos = Manifest.from_rows([{"listing_id": n, "photo": f"/p/{n}{i}.jpg"} for n in "abce" for i in (0, 1)], "")
    tree = create_small_taxonomy()
    with opened_tables(url, {"": tree}) as tables:
        made = manifest_of_outcomes(tables, photos, tree)
        with pytest.raises(ManifestError, match="are its listing_id the same ones"):
            manifest_of_outcomes(tables, photos.take(np.array([6, 7])), tree)

    def labels(manifest):
        return {(row["listing_id"], row["category"], row["brand"]) for row in manifest.table.to_pylist()}

    assert labels(made.shown) == {("a", "gala", "acme"), ("b", "", "")}
    assert labels(made.unseen) == {("c", "fuji", tree.brand_labels[0])}
    assert (len(made.shown), len(made.unseen)) == (4, 2)
    assert (made.new_brands, made.num_without_photos) == ({"Newcomer": 1}, 1)


def test_nothing_to_read_is_told_with_what_records_it(tmp_path):
    with (
        pytest.raises(ListingVisionError, match=r"holds no suggestions; `serve --outcomes"),
        opened_tables(str(tmp_path), {"": create_small_taxonomy()}),
    ):
        pass


def test_the_verb_reports_and_exits_three_where_a_promise_is_broken(bundle, tmp_path):
    leaf = bundle.taxonomy.leaf_ids[0]
    path = [c.id for c in bundle.taxonomy.ancestry(leaf)]
    version, calibrated = bundle.info.model_version, bundle.calibration.version
    broken = next((f for f in bundle.calibration.fields if f.threshold is not None), None)
    other = next(one for one in bundle.taxonomy.leaf_ids if bundle.taxonomy.ancestry(one)[0].id != path[0])
    url = write_tables(
        tmp_path / "outcomes",
        [
            suggestion(
                str(n), 1, version=version, path=path, filled=len(path), brand=None, calibration_version=calibrated
            )
            for n in range(60)
        ],
        [outcome(str(n), 2, other if n % 2 else leaf) for n in range(60)],
    )
    command = [sys.executable, "-m", "listing_vision", "experiment", "report", url, "--bundle", str(bundle.folder)]
    command += ["--output", str(tmp_path / "report.json"), "--metrics", str(tmp_path / "report.prom")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == (3 if broken and broken.name.startswith("category") else 0), done.stderr
    assert "category_depth_1" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["listings_by_release"] == {bundle.release: 60}
    assert "listing_vision_guarantee_met" in (tmp_path / "report.prom").read_text()
    bad = subprocess.run([*command, "--share", "x=2"], capture_output=True, text=True, cwd=ROOT)
    assert (bad.returncode, "give RELEASE=SHARE" in bad.stderr) == (2, True)
