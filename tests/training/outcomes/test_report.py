import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from listing_vision.cli import app
from tests.support.helpers import create_small_taxonomy
from tests.support.outcome_tables import (
    create_calibration,
    create_outcome,
    create_shadow,
    create_suggestion,
    write_tables,
)
from training.outcomes.report import build_report
from training.outcomes.tables import open_tables
from training.statistics.drift import build_histogram
from vision.errors import ListingVisionError
from vision.taxonomy import Category


def test_the_report_names_what_is_better_broken_and_drifting(report):
    by_name = {(one.field, one.release): one for one in report.fields}
    leaf = by_name["category_depth_3", "old"]
    assert (leaf.num_outcomes, leaf.num_hidden) == (3000, 600)
    assert leaf.accepted_interval.low < leaf.accepted < leaf.accepted_interval.high
    assert by_name["category_depth_1", "old"].accepted == 1.0  # lemon is a fruit
    assert report.fields_to_switch_off == [leaf]
    assert leaf.accepted_unseen_interval.low < leaf.accepted_unseen < leaf.accepted_unseen_interval.high
    verdicts = {one.field: one.verdict for one in report.comparisons}
    assert verdicts == {
        "category_depth_1": "no difference found yet",
        "category_depth_2": "better",
        "category_depth_3": "better",
    }
    assert report.sample_ratio_p_value == pytest.approx(1.0)
    drift = {one.statistic: one for one in report.drift}
    assert {one.release for one in report.drift} == {None}
    assert drift["bytes_per_photo"].stability > 0.25 > 0.1 > drift["leaf_probability"].stability
    assert (drift["bytes_per_photo"].grade, drift["photos_per_listing"].grade) == ("large", "none")
    figures = json.loads(json.dumps(report.to_dict()))
    assert figures["fields_to_switch_off"] == ["category_depth_3 of old"]
    assert {one["statistic"]: one["grade"] for one in figures["drift"]} == {name: d.grade for name, d in drift.items()}


def test_a_shadow_is_held_against_what_was_answered_for_the_same_listings(tmp_path):
    listings = [str(number) for number in range(200)]
    chosen = ["gala" if int(name) % 4 else "fuji" for name in listings]  # gala was answered each time
    treatments = ["HIDDEN" if int(name) % 2 else "UNSPECIFIED" for name in listings]
    url = write_tables(
        tmp_path,
        [create_suggestion(name, 1) for name in listings],
        [create_outcome(name, 2, c, treatment=t) for name, c, t in zip(listings, chosen, treatments, strict=True)],
        # It would have been right each time but for the last twenty listings, which it never saw.
        [create_shadow(name, 1.5, path=("fruit", "apple", c)) for name, c in zip(listings[:-20], chosen, strict=False)],
    )
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        report = build_report(tables, calibrations={})
    (same,) = report.shadow_agreement.items()
    assert same == ("shadow", (180, pytest.approx(0.75)))
    assert {one.release for one in report.shadows} == {"shadow"}
    by_part = {(one.field, one.unseen): one for one in report.shadows}
    leaf = by_part["category_depth_3", False]
    assert (leaf.num_outcomes, leaf.accepted, leaf.shown_accepted) == (180, 1.0, pytest.approx(0.75))
    assert leaf.interval.low < 0.25 < leaf.interval.high
    unseen = by_part["category_depth_3", True]
    assert (unseen.num_outcomes, unseen.accepted, unseen.shown_accepted) == (90, 1.0, 1.0)
    assert report.listings_by_release == {"old": 200}  # nobody was answered by it


def test_drift_is_measured_from_what_the_bundle_was_made_from(two_versions):
    expected = {
        "bytes_per_photo": build_histogram(np.arange(500.0, 504)),
        "leaf_probability": build_histogram(np.linspace(0.7, 0.9, 200)),
    }
    calibrations = {"old": replace(create_calibration(category_depth_3=0.8), expected=expected)}
    with open_tables(two_versions, {"": create_small_taxonomy()}) as tables:
        report = build_report(tables, calibrations=calibrations)
    assert {one.release for one in report.drift} == {None, "old"}  # of the other release no bundle is given
    found = {one.statistic: one.stability for one in report.drift if one.release}
    assert found["bytes_per_photo"] > 0.25 > found["leaf_probability"]


def test_two_calibrations_of_the_same_weights_are_two_releases(tmp_path):
    url = write_tables(
        tmp_path,
        [
            create_suggestion(str(n), 1, version="w", calibration_version="aaaaaabb" if n % 2 else "cccccc")
            for n in range(10)
        ],
        [create_outcome(str(n), 2) for n in range(10)],
    )
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        report = build_report(tables, calibrations={"w.aaaaaa": create_calibration(category_depth_3=0.8)})
    assert report.listings_by_release == {"w.aaaaaa": 5, "w.cccccc": 5}
    guaranteed = {one.release: one.guaranteed for one in report.fields if one.field == "category_depth_3"}
    assert guaranteed == {"w.aaaaaa": 0.95, "w.cccccc": None}


@pytest.mark.parametrize("shares", [{"old": 0.75}, {"new": 0.25}, {"old": 0.75, "new": 0.25}])
def test_the_one_release_without_a_share_has_the_rest(tmp_path, shares):
    url = write_tables(
        tmp_path,
        [create_suggestion(str(n), 1, version="new" if n % 4 == 0 else "old") for n in range(40)],
        [create_outcome(str(n), 2) for n in range(40)],
    )
    with open_tables(url, {"": create_small_taxonomy()}) as tables:
        assert build_report(tables, calibrations={}, shares=shares).sample_ratio_p_value == pytest.approx(1.0)


@pytest.mark.parametrize(("num_releases", "shares"), [(1, {"r0": 0.5}), (2, {"r0": 1.0}), (3, {"r0": 0.5})])
def test_shares_that_leave_releases_out_are_refused(tmp_path, num_releases, shares):
    url = write_tables(
        tmp_path,
        [create_suggestion(str(n), 1, version=f"r{n}") for n in range(num_releases)],
        [create_outcome(str(n), 2) for n in range(num_releases)],
    )
    with open_tables(url, {"": create_small_taxonomy()}) as tables, pytest.raises(ListingVisionError, match="the rest"):
        build_report(tables, calibrations={}, shares=shares)


def test_each_release_is_evaluated_with_its_own_tree(tmp_path):
    old = create_small_taxonomy()
    # In the new one a leaf has moved, and there is one that the old one lacks.
    moved = [replace(c, parent_id="pome") if c.id == "gala" else c for c in old.categories]
    more = [Category(id=i, names={"en": i}, parent_id=p) for i, p in (("pome", "fruit"), ("pear", "pome"))]
    new = replace(old, categories=(*moved, *more))
    url = write_tables(
        tmp_path,
        [create_suggestion(i, 1) for i in "ab"]
        + [create_suggestion(i, 1, version="new", path=("fruit", "pome", "gala")) for i in "cd"],
        [create_outcome(i, 2) for i in "ac"] + [create_outcome(i, 2, "pear") for i in "bd"],
    )
    with open_tables(url, {"old": old, "new": new}) as tables:
        report = build_report(tables, calibrations={})
    accepted = {(one.field, one.release): (one.num_outcomes, one.accepted) for one in report.fields}
    for release in ("old", "new"):
        assert accepted["category_depth_1", release] == (2, 1.0)
        assert accepted["category_depth_3", release] == (2, 0.5)
    assert accepted["category_depth_2", "new"] == (2, 1.0)
    assert accepted["category_depth_2", "old"] == (2, 0.5)


@pytest.mark.parametrize("wrong", [{"control": "odl"}, {"shares": {"odl": 0.5}}])
def test_a_release_that_has_answered_nothing_is_named(two_versions, wrong):
    with (
        open_tables(two_versions, {"": create_small_taxonomy()}) as tables,
        pytest.raises(
            ListingVisionError, match=r"--\w+ odl: this release has no suggestions; those that have are new, old"
        ),
    ):
        build_report(tables, calibrations={}, **wrong)


def test_the_verb_reports_and_exits_three_where_a_guarantee_is_broken(bundle, tmp_path):
    leaf = bundle.taxonomy.leaf_ids[0]
    path = [c.id for c in bundle.taxonomy.get_lineage(leaf)]
    version, calibrated = bundle.info.model_version, bundle.calibration.version
    broken = next((f for f in bundle.calibration.fields if f.threshold is not None), None)
    other = next(one for one in bundle.taxonomy.leaf_ids if bundle.taxonomy.get_lineage(one)[0].id != path[0])
    url = write_tables(
        tmp_path / "outcomes",
        [
            create_suggestion(
                str(n), 1, version=version, path=path, filled=len(path), brand=None, calibration_version=calibrated
            )
            for n in range(60)
        ],
        [create_outcome(str(n), 2, other if n % 2 else leaf) for n in range(60)],
    )
    words = ["experiment", "report", url, "--bundle", str(bundle.folder)]
    words += ["--output", str(tmp_path / "report.json"), "--metrics", str(tmp_path / "report.prom")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == (3 if broken and broken.name.startswith("category") else 0), done.stderr
    assert "Category, depth 1" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["listings_by_release"] == {bundle.release: 60}
    assert "listing_vision_guarantee_met" in (tmp_path / "report.prom").read_text()
    CliRunner().invoke(app, [*words, "--output", str(tmp_path / "page")])
    page = (tmp_path / "page" / "experiment.html").read_text()
    assert f"<dt>release {bundle.release}</dt><dd>60 listings</dd>" in page
    assert json.loads((tmp_path / "page" / "experiment.json").read_text())["fields"] == report["fields"]
    bad = CliRunner().invoke(app, [*words, "--share", "x=2"])
    assert (bad.exit_code, "give RELEASE=SHARE" in bad.stderr) == (2, True)
