import base64
import dataclasses
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from tests.support.pages import ParsedPage
from tests.support.synthetic import create_synthetic_calibration, create_synthetic_predictions
from training.evaluation.evaluate import evaluate, replace_nan
from training.evaluation.report import render_report, write_report
from training.reporting.field_titles import format_field_title

SECTIONS = (
    "accuracy",
    "hierarchy",
    "frequency",
    "calibration",
    "brand",
    "categories",
    "matrix",
    "confusions",
    "slices",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encode_image(create_scene(320 + 40 * number, 300)))
    return tuple(str(folder / f"{number}.jpg") for number in range(4))


def evaluate_photos(photos, *, taxonomy=None, uncertified_reason="too few listings", **changes):
    predictions = dataclasses.replace(create_synthetic_predictions(num_listings=150, photos=photos), **changes)
    calibration = create_synthetic_calibration(uncertified_reason=uncertified_reason)
    figures = evaluate(predictions, taxonomy=taxonomy or create_small_taxonomy(), calibration=calibration)
    return {"model": "bundle x 1", "split": "test", **figures}


@pytest.fixture(scope="module")
def figures(photos):
    evaluated = evaluate_photos(photos)
    exploration = {"split": "val", "num": 150, "selective": evaluated["listing"]["selective"]}
    provenance = {"date": "2026-11-28", "manifest_sha256": "ab12"}
    return {**evaluated, "exploration": exploration, "provenance": provenance}


@pytest.fixture(scope="module")
def text(figures):
    return render_report(figures)


@pytest.fixture(scope="module")
def parse_page(text):
    return ParsedPage(text)


def test_each_section_is_there_for_both_views_and_linked(parse_page):
    ids = [attributes["id"] for _, attributes in parse_page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {f"{view}-{section}" for view in ("listing", "photo") for section in SECTIONS} | {"listing-selective"}
    assert wanted <= set(ids)
    assert {link["href"].removeprefix("#") for link in parse_page.all("a")} == wanted | {"glossary"}
    for section in parse_page.all("section"):
        assert section["aria-labelledby"] in ids


def test_without_examples_there_is_no_section_for_them(parse_page):
    assert "What the model looked at" not in parse_page.text


def test_every_plot_is_there_and_says_what_it_shows(parse_page):
    labels = [svg["aria-label"] for svg in parse_page.all("svg")]
    for view in ("listing", "photo"):
        for field in ("Category, depth 1", "Category, depth 2", "Category, depth 3", "Brand"):
            curves = sum(label.startswith(f"{field} per {view}: precision against coverage") for label in labels)
            assert curves == (view == "listing")  # a guarantee holds for listings
            assert sum(label.startswith(f"{field} per {view}: right over confidence") for label in labels) == 1
        for start in ("Where the predicted path first leaves the label", "Macro accuracy"):
            assert sum(label.startswith(f"{start} per {view}") for label in labels) == 1
        assert sum(label.startswith("Hierarchical F1 by") and f"per {view}:" in label for label in labels) == 4
    assert len(labels) == len(set(labels))
    assert any("the certified threshold 0.600 fills in" in label for label in labels)
    assert any("never filled in: too few listings" in label for label in labels)


def test_figures_stand_on_the_page_with_their_intervals(figures, text):
    for view in ("listing", "photo"):
        level = figures[view]["leaf"]
        for name in ("top1", "macro", "ece", "ece_uncalibrated"):
            low, high = (f"{100 * end:.1f}" for end in level[f"{name}_interval"])
            assert f'<td>{100 * level[name]:.1f} <span class="small">{low}–{high}</span></td>' in text
        unseen = figures[view]["brand"]
        assert f"{100 * unseen['none_known_unseen']:.1f} <span" in text


def test_a_number_has_one_interval(figures):
    for name, field in figures["listing"]["fields"].items():
        certified = (
            figures["listing"]["selective"][name]["certified"] if name in figures["listing"]["selective"] else None
        )
        if certified:
            assert (field["coverage"], field["precision"]) == (certified["coverage"], certified["precision"])
            for share in ("coverage", "precision"):
                assert field[f"{share}_interval"] == certified[f"{share}_interval"]


def test_confused_pairs_have_their_photos_side_by_side(figures, parse_page):
    images = parse_page.all("img")
    for pair in figures["listing"]["confusions"]:
        taken = f"{pair['truth_path']}, taken for {pair['answer_path']}"
        assert sum(image["alt"] == taken for image in images) >= len(pair["photos"]) > 0
    shown = sum(len(p["photos"]) + len(p["photos_of_answer"]) for p in figures["listing"]["confusions"])
    shown += sum(len(one["errors"]) for one in figures["listing"]["categories"])
    assert len(images) == shown
    for image in images:
        head, data = image["src"].split(",", 1)
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) == 200


def test_only_the_reports_own_script_runs_and_nothing_is_requested(text, parse_page):
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in parse_page.all("meta") if "http-equiv" in meta]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not parse_page.handlers
    assert "http:" not in text
    assert "https:" not in text
    for _, attributes in parse_page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg"))
    assert not re.search(r"url\((?!#)|@import", text)


def test_it_needs_no_eyes_and_no_mouse(parse_page):
    assert all(image["alt"] for image in parse_page.all("img"))
    assert all(svg["role"] == "img" for svg in parse_page.all("svg"))
    assert len(parse_page.all("caption")) == len(parse_page.all("table")) > 20
    assert all(cell.get("scope") in ("row", "col") for cell in parse_page.all("th"))
    assert ("html", {"lang": "en"}) in parse_page.tags


def test_hostile_names_are_shown_as_they_are(photos):
    hostile = "<script>alert(1)</script>\"'&"
    tree = create_small_taxonomy()
    named = dataclasses.replace(
        tree, categories=tuple(dataclasses.replace(c, names={"en": f"{c.id}{hostile}"}) for c in tree.categories)
    )
    figures = {
        **evaluate_photos(photos, taxonomy=named, uncertified_reason=hostile),
        "model": hostile,
        "split": hostile,
    }
    text = render_report(figures)
    parse_page = ParsedPage(text)
    assert parse_page.all("script") == [{}]
    assert "<script>alert" not in text
    assert not parse_page.handlers
    assert f"gala{hostile}" in parse_page.text
    assert f"Evaluation of {hostile} on {hostile}" in parse_page.text
    assert f"never filled in: {hostile}" in parse_page.text


def test_each_category_has_its_row_and_the_matrix_its_counts(figures, text):
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows}
    for view in ("listing", "photo"):
        part = figures[view]
        for one in part["categories"]:
            shown = [found for name, found in rows if name == one["path"].replace(">", "&gt;")]
            assert any(f"<td>{one['num']}</td><td>{100 * one['recall']:.1f} <" in found for found in shown)
    worst = [one for one in figures["listing"]["categories"] if one["parent"] == "Fruit > Apple"]
    assert {"Gala", "Fuji"} <= {one["path"].rpartition(" > ")[2] for one in worst}
    assert cells["Gala"]
    total = sum(cell["num"] for cell in figures["listing"]["confusion_matrix"])
    assert total == figures["listing"]["leaf"]["num"]


def test_the_verdict_stands_first_and_provenance_follows(text):
    verdict, provenance = text.index('id="verdict"'), text.index("Where these figures come from")
    assert text.index("<h1>") < verdict < provenance < text.index("<nav")
    assert "<dt>manifest sha256</dt><dd>ab12</dd>" in text
    assert "<dt>counts</dt><dd>150 listings, " in text


def test_sliders_move_on_the_tune_listings_and_say_that_they_guarantee_nothing(figures, text):
    selective = figures["exploration"]["selective"]
    starts = dict(re.findall(r'data-slider="(.*?)" data-start="(\d+)"', text))
    assert set(starts) == {format_field_title(name) for name, curve in selective.items() if curve["points"]}
    for name, curve in selective.items():
        if curve["points"]:
            start = curve["points"][int(starts[format_field_title(name)])]
            least = curve["certified"]["threshold"] if curve["certified"] else curve["points"][0]["threshold"]
            assert start["threshold"] >= least
    assert "A threshold chosen here guarantees nothing" in text
    assert text.count("<div data-slider=") == sum(bool(curve["points"]) for curve in selective.values())
    assert "the certified threshold is 0.600" in text


def test_listings_of_one_photo_are_shown_once(photos):
    predictions = create_synthetic_predictions(num_listings=150, photos=photos)
    alone = evaluate_photos(
        photos,
        groups=np.arange(len(predictions.groups)),
        listing_ids=tuple(map(str, range(len(predictions.groups)))),
    )
    parse_page = ParsedPage(render_report(alone))
    assert "Each listing has one photo" in parse_page.text
    assert not [attributes for _, attributes in parse_page.tags if "data-slider" in attributes]
    assert "All listings are alike by photos of the listing: 1." in parse_page.text
    assert "· confusion matrix ·" in parse_page.text
    assert not [attributes for _, attributes in parse_page.tags if attributes.get("id", "").startswith("photo")]


def test_a_model_without_guarantees_and_data_without_labels_have_a_page_too(photos):
    predictions = create_synthetic_predictions(num_listings=5, photos=("gone.jpg",))
    nothing = dataclasses.replace(
        predictions.labels,
        category_nodes=np.full_like(predictions.labels.category_nodes, -1),
        brands=np.full_like(predictions.labels.brands, -1),
    )
    calibration = dataclasses.replace(create_synthetic_calibration(), fields=())
    for labels in (predictions.labels, nothing):
        changed = dataclasses.replace(predictions, labels=labels)
        figures = evaluate(changed, taxonomy=create_small_taxonomy(), calibration=calibration)
        parse_page = ParsedPage(render_report({"model": "run x", "split": "test", **figures}))
        assert "nan" not in parse_page.text.lower().replace("banana", "")


def test_the_gates_have_their_shares_and_a_taxonomy_without_brands_has_no_section_of_them(photos):
    without = dataclasses.replace(create_small_taxonomy(), brands=())
    labels = create_synthetic_predictions(num_listings=150, photos=photos).labels
    unlabelled = dataclasses.replace(labels, brands=np.full_like(labels.brands, -1))
    figures = evaluate_photos(photos, taxonomy=without, labels=unlabelled)
    page = ParsedPage(render_report(figures))
    assert "Photos disagree: filled in only as deep as they agree" in page.text
    assert not {attributes.get("id") for _, attributes in page.tags} & {"listing-brand", "photo-brand"}
    assert "brand per listing" not in page.text


def test_a_folder_takes_both_and_a_json_name_the_figures_alone(figures, text, tmp_path):
    read_back = json.loads(json.dumps(replace_nan(figures)))
    metrics, report = write_report(read_back, tmp_path / "reports" / "one")
    assert (metrics.name, report.name) == ("metrics.json", "report.html")

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(metrics.read_text(), parse_constant=refuse)
    assert read["listing"]["leaf"]["top1"] == figures["listing"]["leaf"]["top1"]
    assert read["listing"]["fields"]["brand"]["precision"] is None  # never filled
    assert report.read_text() == text
    (alone,) = write_report(figures, tmp_path / "alone.json")
    assert json.loads(alone.read_text()) == read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.json", "reports"]
