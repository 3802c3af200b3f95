import dataclasses

import numpy as np
import pytest

from tests.training.evaluation.test_report import ParsedPage
from training.evaluation.ground_truth import truth_by_depth
from training.evaluation.looks import looks
from training.evaluation.report import write_report
from training.inference.evaluated_model import load_judged
from training.inference.predictions import predict
from vision.decision import compute_leaf_probabilities
from vision.errors import ListingVisionError
from vision.manifest import Labels, Manifest


@pytest.fixture(scope="module")
def answered(bundle, synthetic_dataset):
    judged = load_judged(bundle.folder)
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).where_split("val")
    return judged, predict(rows, judged.taxonomy, judged.preprocessing, judged.infer)


def test_the_surest_mistakes_come_first_then_right_answers(answered):
    judged, predictions = answered
    shown = looks(predictions, judged, num_each=4)
    wrong = [look for look in shown if look.answered != look.true]
    right = [look for look in shown if look.answered == look.true]
    assert shown == [*wrong, *right]
    assert (len(wrong), len(right)) == (4, 4)
    assert [look.probability for look in wrong] == sorted((look.probability for look in wrong), reverse=True)
    # None that is surer was left out.
    true = truth_by_depth(predictions.labels, judged.taxonomy).leaves
    each_alone = np.arange(len(predictions.groups))
    leaves = compute_leaf_probabilities(predictions.category_logits, each_alone, judged.calibration, judged.taxonomy)
    assert wrong[0].probability == leaves.max(axis=1)[leaves.argmax(axis=1) != true].max()
    assert len({look.image_uri for look in shown}) == len(shown)


def test_photos_without_a_leaf_label_are_not_shown(answered):
    judged, predictions = answered
    unlabelled = dataclasses.replace(
        predictions,
        labels=Labels(category_nodes=np.full(len(predictions.groups), -1), brands=predictions.labels.brands),
    )
    assert looks(unlabelled, judged) == []


def test_the_page_shows_them_and_figures_alone_ask_for_none(answered, tmp_path):
    from training.evaluation.evaluate import evaluate

    judged, predictions = answered
    figures = evaluate(predictions, taxonomy=judged.taxonomy, calibration=judged.calibration)
    named = {"model": judged.name, "split": "val", **figures}
    shown = looks(predictions, judged, num_each=2)
    hostile = dataclasses.replace(shown[0], photo="<script>alert(1)</script>")
    page = write_report(named, tmp_path, lambda: [hostile, *shown[1:]])[1].read_text()
    parsed = ParsedPage(page)
    assert "Where the model looked" in parsed.text
    assert "<script>" in parsed.text  # as text
    assert "script" not in {tag for tag, _ in parsed.tags}
    alternatives = [attributes.get("alt") for tag, attributes in parsed.tags if tag == "img"]
    assert [alt for alt in alternatives if "Heat for" in alt] == [f"Heat for {look.answered}" for look in shown]

    def asked():
        raise AssertionError("figures alone need no heat")

    write_report(named, tmp_path / "figures.json", asked)
    assert "Where the model looked" not in ParsedPage(write_report(named, tmp_path / "plain")[1].read_text()).text


def test_without_captum_it_says_which_extra_brings_it(answered, monkeypatch):
    import sys

    judged, predictions = answered
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ListingVisionError, match=r"listing-vision\[explain\]"):
        looks(predictions, judged)
