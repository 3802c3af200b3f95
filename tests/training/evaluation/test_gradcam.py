import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.helpers import create_scene, encode_image
from tests.support.pages import ParsedPage
from training.evaluation.evaluate import evaluate
from training.evaluation.gradcam import choose_examples, compute_heat_maps, draw_overlay, write_overlays
from training.evaluation.ground_truth import build_ground_truth
from training.evaluation.report import write_report
from training.inference.evaluated_model import load_evaluated_model
from training.inference.predictions import predict
from vision.errors import ListingVisionError
from vision.manifest import Labels, Manifest
from vision.model import ListingClassifier, ModelSpec
from vision.prediction.fusion import compute_leaf_probabilities


def classifier(backbone="test_efficientnet", **spec):
    torch.manual_seed(0)
    made = ModelSpec(backbone=backbone, num_categories=3, num_brands=3, mean=(0.5,) * 3, std=(0.25,) * 3, **spec)
    return ListingClassifier(made).eval()


def create_noise_photos(num_photos, side=64):
    return np.random.default_rng(0).integers(0, 256, (num_photos, side, side, 3), np.uint8)


@pytest.mark.parametrize(
    "backbone", ["test_efficientnet", "test_convnext", "test_vit", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
@pytest.mark.parametrize("field", ["category", "brand"])
def test_every_kind_of_backbone_gives_a_map_as_large_as_the_photo(backbone, field):
    heat = compute_heat_maps(classifier(backbone, brand_head="cosine"), create_noise_photos(2), [1, 2], field=field)
    assert heat.shape == (2, 64, 64)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max() == 1
    assert heat.std() > 0.05


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_heat_is_where_the_evidence_is(corner):
    # All features count for the answer alike, so what speaks for it is wherever the photo is not black.
    model = classifier("resnet10t", brand_head="linear")
    with torch.no_grad():
        model.category_head.weight[1] = 1.0
        for module in model.backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.abs_()
    photo = np.full((1, 128, 128, 3), 127, np.uint8)
    top, left = (64 * part for part in corner)
    photo[:, top + 16 : top + 48, left + 16 : left + 48] = 255
    heat = compute_heat_maps(model, photo, [1])[0]
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row // 64, column // 64) == corner


def test_a_map_is_that_of_its_own_photo_and_target():
    model, photos = classifier(), create_noise_photos(11)
    together = compute_heat_maps(model, photos, [i % 3 for i in range(11)])
    alone = compute_heat_maps(model, photos[10:], [1])
    np.testing.assert_allclose(together[10], alone[0], atol=1e-4)
    assert not np.allclose(
        compute_heat_maps(model, photos[:1], [0]), compute_heat_maps(model, photos[:1], [1]), atol=0.05
    )


def test_looking_leaves_the_model_as_it_was():
    model = classifier(brand_head="cosine")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compute_heat_maps(model, create_noise_photos(1), [0], field="brand")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_overlay_colours_what_is_hot_and_leaves_the_rest():
    photo = np.full((40, 60, 3), 100, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:, 6:] = 1
    shown = draw_overlay(photo, heat)
    assert shown.shape == photo.shape
    assert shown.dtype == np.uint8
    assert (shown[:, :20] == 100).all()
    # One hue, the more of it the hotter: no map of many colours.
    amounts = (shown.astype(int) - 100) / (np.array((214, 24, 24)) - 100)
    assert np.ptp(amounts, axis=-1).max() < 0.02
    assert (np.diff(amounts.mean(axis=-1)[20]) >= 0).all()
    assert amounts[20, 58].mean() == pytest.approx(0.75, abs=0.02)


def test_overlays_are_written_for_category_and_brand(bundle, tmp_path):
    photos = [
        ("front.jpg", encode_image(create_scene(200, 120))),
        ("front.jpg", encode_image(create_scene(90, 150), "PNG")),
    ]
    leaf_id, brand = bundle.taxonomy.leaf_ids[2], bundle.taxonomy.brands[0]
    written = write_overlays(bundle, photos, tmp_path / "seen", category_id=leaf_id, brand_id=brand.id)
    assert [path.name for path in written] == [
        *("00-front-brand.jpg", "00-front-category.jpg", "01-front-brand.jpg", "01-front-category.jpg")
    ]
    with Image.open(written[2]) as shown:
        assert shown.size == (90, 150)
    without = write_overlays(bundle, photos[:1], tmp_path / "other", category_id=leaf_id)
    assert [path.name for path in without] == ["00-front-category.jpg"]


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ListingVisionError, match=r"install listing-vision\[explain\]"):
        compute_heat_maps(classifier(), create_noise_photos(1), [0])


def test_a_server_is_not_asked_where_it_looked(tmp_path):
    command = [sys.executable, "-m", "listing_vision", "classify", "x.jpg", "--server", "localhost:1"]
    done = subprocess.run([*command, "--explain", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--explain needs --bundle" in done.stderr


@pytest.fixture(scope="module")
def evaluated(bundle, synthetic_dataset):
    model = load_evaluated_model(bundle.folder)
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("val")
    return model, predict(rows, model.taxonomy, model.preprocessing, model.infer)


def test_the_most_confident_mistakes_come_first_then_right_predictions(evaluated):
    model, predictions = evaluated
    shown = choose_examples(predictions, model, num_each=4)
    wrong = [example for example in shown if example.predicted != example.label]
    right = [example for example in shown if example.predicted == example.label]
    assert shown == [*wrong, *right]
    assert (len(wrong), len(right)) == (4, 4)
    assert [example.probability for example in wrong] == sorted(
        (example.probability for example in wrong), reverse=True
    )
    # No more confident mistake was left out.
    true = build_ground_truth(predictions.labels, model.taxonomy).leaves
    each_alone = np.arange(len(predictions.groups))
    leaves = compute_leaf_probabilities(predictions.category_logits, each_alone, model.calibration, model.taxonomy)
    assert wrong[0].probability == leaves.max(axis=1)[leaves.argmax(axis=1) != true].max()
    assert len({example.image_uri for example in shown}) == len(shown)


def test_photos_without_a_leaf_label_are_not_shown(evaluated):
    model, predictions = evaluated
    unlabelled = dataclasses.replace(
        predictions,
        labels=Labels(category_nodes=np.full(len(predictions.groups), -1), brands=predictions.labels.brands),
    )
    assert choose_examples(unlabelled, model) == []


def test_the_page_shows_them_and_figures_alone_ask_for_none(evaluated, tmp_path):
    model, predictions = evaluated
    figures = evaluate(predictions, taxonomy=model.taxonomy, calibration=model.calibration)
    named = {"model": model.name, "split": "val", **figures}
    shown = choose_examples(predictions, model, num_each=2)
    hostile = dataclasses.replace(shown[0], photo="<script>alert(1)</script>")
    page = write_report(named, tmp_path, lambda: [hostile, *shown[1:]])[1].read_text()
    parsed = ParsedPage(page)
    assert "What the model looked at" in parsed.text
    assert "<script>" in parsed.text  # as text
    assert parsed.all("script") == [{}]  # the report's own
    assert "<script>alert" not in page
    alternatives = [attributes.get("alt") for tag, attributes in parsed.tags if tag == "img"]
    assert [alt for alt in alternatives if "Heat for" in alt] == [f"Heat for {example.predicted}" for example in shown]

    def fail():
        raise AssertionError("figures alone need no heat")

    write_report(named, tmp_path / "figures.json", fail)


def test_examples_without_captum_name_the_extra_that_brings_it(evaluated, monkeypatch):
    model, predictions = evaluated
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ListingVisionError, match=r"listing-vision\[explain\]"):
        choose_examples(predictions, model)
