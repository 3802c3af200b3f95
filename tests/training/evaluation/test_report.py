import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.support.helpers import encoded, scene, small_taxonomy
from tests.support.synthetic import synthetic_calibration, synthetic_predictions
from training.evaluation.evaluate import evaluate, without_nan
from training.evaluation.report import report_page, write_report

SECTIONS = ("accuracy", "selective", "hierarchy", "frequency", "calibration", "brand", "confusions", "slices")
VOID = {"meta", "img", "br", "path", "use"}


class Parsed(HTMLParser):
    """Tags, attributes and text of a page, its elements all closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.handlers = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encoded(scene(320 + 40 * number, 300)))
    return tuple(str(folder / f"{number}.jpg") for number in range(4))


def judged(photos, *, taxonomy=None, why_not="too few listings", **changes):
    predictions = dataclasses.replace(synthetic_predictions(num_listings=150, photos=photos), **changes)
    calibration = synthetic_calibration(why_not=why_not)
    figures = evaluate(predictions, taxonomy=taxonomy or small_taxonomy(), calibration=calibration)
    return {"model": "bundle x 1", "split": "test", **figures}


@pytest.fixture(scope="module")
def figures(photos):
    return judged(photos)


@pytest.fixture(scope="module")
def text(figures):
    return report_page(figures)


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_each_section_is_there_for_both_views_and_linked(parsed):
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {f"{view}-{section}" for view in ("listing", "photo") for section in SECTIONS}
    assert wanted <= set(ids)
    assert {link["href"].removeprefix("#") for link in parsed.all("a")} == wanted
    for section in parsed.all("section"):
        assert section["aria-labelledby"] in ids


def test_every_plot_is_there_and_says_what_it_shows(parsed):
    labels = [svg["aria-label"] for svg in parsed.all("svg")]
    for view in ("listing", "photo"):
        for field in ("Category, depth 1", "Category, depth 2", "Category, depth 3", "Brand"):
            assert sum(label.startswith(f"{field} per {view}: precision against coverage") for label in labels) == 1
            assert sum(label.startswith(f"{field} per {view}: right over confidence") for label in labels) == 1
        for start in ("Where the answered path first leaves the truth", "Macro accuracy"):
            assert sum(label.startswith(f"{start} per {view}") for label in labels) == 1
        assert sum(label.startswith("Hierarchical F1 by") and f"per {view}:" in label for label in labels) == 4
    assert len(labels) == len(set(labels))
    assert any("the certified threshold 0.600 fills" in label for label in labels)
    assert any("never filled: too few listings" in label for label in labels)


def test_figures_stand_on_the_page_with_their_intervals(figures, text):
    for view in ("listing", "photo"):
        level = figures[view]["leaf"]
        for name in ("top1", "macro", "ece", "ece_uncalibrated"):
            low, high = (f"{100 * end:.1f}" for end in level[f"{name}_interval"])
            assert f'<td>{100 * level[name]:.1f} <span class="small">{low}–{high}</span></td>' in text
        unseen = figures[view]["brand"]
        assert f"{100 * unseen['none_known_unseen']:.1f} <span" in text


def test_confused_pairs_have_their_photos_side_by_side(figures, parsed):
    images = parsed.all("img")
    for pair in figures["listing"]["confusions"]:
        taken = f"{pair['truth_path']}, taken for {pair['answer_path']}"
        assert sum(image["alt"] == taken for image in images) == len(pair["photos"]) > 0
    shown = sum(len(p["photos"]) + len(p["photos_of_answer"]) for p in figures["listing"]["confusions"])
    assert len(images) == shown
    for image in images:
        head, data = image["src"].split(",", 1)
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) == 200


def test_nothing_runs_and_nothing_is_requested(text, parsed):
    assert not parsed.all("script")
    assert not parsed.handlers
    assert "http:" not in text
    assert "https:" not in text
    for _, attributes in parsed.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg"))
    assert not re.search(r"url\((?!#)|@import", text)


def test_it_needs_no_eyes_and_no_mouse(parsed):
    assert all(image["alt"] for image in parsed.all("img"))
    assert all(svg["role"] == "img" for svg in parsed.all("svg"))
    assert len(parsed.all("caption")) == len(parsed.all("table")) > 20
    assert all(cell.get("scope") in ("row", "col") for cell in parsed.all("th"))
    assert ("html", {"lang": "en"}) in parsed.tags


def test_hostile_names_are_shown_as_they_are(photos):
    hostile = "<script>alert(1)</script>\"'&"
    tree = small_taxonomy()
    named = dataclasses.replace(
        tree, categories=tuple(dataclasses.replace(c, names={"en": f"{c.id}{hostile}"}) for c in tree.categories)
    )
    figures = {**judged(photos, taxonomy=named, why_not=hostile), "model": hostile, "split": hostile}
    text = report_page(figures)
    parsed = Parsed(text)
    assert not parsed.all("script")
    assert not parsed.handlers
    assert f"gala{hostile}" in parsed.text
    assert f"Evaluation of {hostile} on {hostile}" in parsed.text
    assert f"never filled: {hostile}" in parsed.text


def test_the_page_of_figures_read_back_is_the_same(figures, text):
    assert report_page(json.loads(json.dumps(without_nan(figures)))) == text


def test_listings_of_one_photo_are_shown_once(photos):
    predictions = synthetic_predictions(num_listings=150, photos=photos)
    alone = judged(
        photos,
        groups=np.arange(len(predictions.groups)),
        listing_ids=tuple(map(str, range(len(predictions.groups)))),
    )
    parsed = Parsed(report_page(alone))
    assert "Each listing has one photo" in parsed.text
    assert not [attributes for _, attributes in parsed.tags if attributes.get("id", "").startswith("photo")]


def test_a_model_without_promises_and_data_without_labels_have_a_page_too(photos):
    predictions = synthetic_predictions(num_listings=5, photos=("gone.jpg",))
    nothing = dataclasses.replace(
        predictions.labels,
        category_nodes=np.full_like(predictions.labels.category_nodes, -1),
        brands=np.full_like(predictions.labels.brands, -1),
    )
    calibration = dataclasses.replace(synthetic_calibration(), fields=())
    for labels in (predictions.labels, nothing):
        changed = dataclasses.replace(predictions, labels=labels)
        figures = evaluate(changed, taxonomy=small_taxonomy(), calibration=calibration)
        parsed = Parsed(report_page({"model": "run x", "split": "test", **figures}))
        assert "nan" not in parsed.text.lower().replace("banana", "")


def test_a_folder_takes_both_and_a_json_name_the_figures_alone(figures, tmp_path):
    metrics, report = write_report(figures, tmp_path / "reports" / "one")
    assert (metrics.name, report.name) == ("metrics.json", "report.html")

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(metrics.read_text(), parse_constant=refuse)
    assert read["listing"]["leaf"]["top1"] == figures["listing"]["leaf"]["top1"]
    assert read["listing"]["fields"]["brand"]["precision"] is None  # never filled
    assert report.read_text().startswith("<!doctype html>")
    (alone,) = write_report(figures, tmp_path / "alone.json")
    assert json.loads(alone.read_text()) == read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.json", "reports"]
