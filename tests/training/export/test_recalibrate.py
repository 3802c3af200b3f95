import dataclasses
import json

import numpy as np
import pytest

from tests.support.predictions import create_predictions
from training.calibration.certify import Guarantee
from training.export.recalibrate import recalibrate, recalibrate_from_scores
from vision.bundle import load_bundle
from vision.errors import BundleError, ListingVisionError
from vision.manifest import UNLABELLED, Labels


def create_exact_predictions(bundle, count, rng):
    """Predictions of an errorless model for listings of the bundle's taxonomy."""
    made = create_predictions(np.zeros((count, 4)), np.zeros(count, int))
    taxonomy = bundle.taxonomy
    leaves = rng.integers(0, len(taxonomy.leaf_ids), count)
    logits = rng.normal(0, 1, (count, len(taxonomy.leaf_ids))).astype(np.float32)
    logits[np.arange(count), leaves] += 14
    nodes = np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])[leaves]
    brands = rng.integers(0, len(taxonomy.brand_labels), count)
    brand_logits = rng.normal(0, 1, (count, len(taxonomy.brand_labels))).astype(np.float32)
    brand_logits[np.arange(count), brands] += 14
    return dataclasses.replace(
        made, category_logits=logits, brand_logits=brand_logits, labels=Labels(category_nodes=nodes, brands=brands)
    )


def recalibrate_bundle(bundle, folder, **changes):
    rng = np.random.default_rng(0)
    settings = {"split": "calibrate", "backend": "onnxruntime-cpu", "guarantee": Guarantee()} | changes
    return recalibrate(
        bundle,
        folder,
        tune=create_exact_predictions(bundle, 500, rng),
        tested=create_exact_predictions(bundle, 700, rng),
        **settings,
    )


def test_new_guarantees_come_with_the_same_model(bundle, tmp_path):
    new = recalibrate_bundle(bundle, tmp_path / "new", guarantee=Guarantee(alpha_brand=0.04))
    assert new.sha256["weights.safetensors"] == bundle.sha256["weights.safetensors"]
    assert new.sha256["model.onnx"] == bundle.sha256["model.onnx"]
    assert new.info.model_version == bundle.info.model_version
    assert new.calibration.version != bundle.calibration.version
    assert all(field.threshold is not None for field in new.calibration.fields)
    assert all(field.num_listings <= 700 for field in new.calibration.fields)
    assert new.calibration.field("brand").alpha == 0.04
    assert "| Brand | 96% |" in (new.folder / "model_card.md").read_text()
    assert new.calibration.certifies["split"] == "calibrate"
    assert load_bundle(new.folder).calibration == new.calibration


def test_thresholds_from_unlabelled_scores_leave_every_labelled_listing_to_the_tests(bundle, tmp_path):
    rng = np.random.default_rng(0)
    scored, tested = (create_exact_predictions(bundle, count, rng) for count in (400, 250))
    unlabelled = dataclasses.replace(
        scored, labels=Labels(category_nodes=np.full(400, UNLABELLED), brands=np.full(400, UNLABELLED))
    )

    def certify(folder, scored, tested=tested):
        return recalibrate_from_scores(
            bundle,
            tmp_path / folder,
            scored=scored,
            tested=tested,
            split="calibrate",
            backend="onnxruntime-cpu",
            guarantee=Guarantee(),
        ).calibration

    found = certify("unlabelled", unlabelled)
    assert [field.num_listings for field in found.fields] == [250, 250]
    assert all(field.threshold in field.grid for field in found.fields)
    # Temperatures and gates are fitted on nothing here; labels of the listings that are scored are not read.
    unchanged = {"fields": (), "delta": None, "certifies": {}}
    assert dataclasses.replace(found, **unchanged) == dataclasses.replace(bundle.calibration, **unchanged)
    assert certify("labelled", scored) == found
    # Nor do labels that are tested on move the thresholds to test.
    wrong = dataclasses.replace(tested, labels=Labels(category_nodes=np.zeros(250, int), brands=np.zeros(250, int)))
    never = certify("wrong", unlabelled, wrong)
    assert [field.grid for field in never.fields] == [field.grid for field in found.fields]
    assert [field.threshold for field in never.fields] == [None, None]


def test_photos_of_other_things_raise_the_scope_threshold_and_the_certificate_says_so(bundle, tmp_path):
    rng = np.random.default_rng(1)
    scores = bundle.calibration.scope_threshold + np.linspace(-0.5, 4.5, 500, dtype=np.float32)
    tune = dataclasses.replace(create_exact_predictions(bundle, 500, rng), scope_scores=scores)
    settings = {"tune": tune, "tested": tune, "split": "val", "backend": "onnxruntime-cpu", "guarantee": Guarantee()}
    outside = dataclasses.replace(
        tune, scope_scores=bundle.calibration.scope_threshold + np.full(500, -0.4, np.float32)
    )
    far = recalibrate(bundle, tmp_path / "far", outside=outside, **settings).calibration
    assert far.scope_threshold == bundle.calibration.scope_threshold
    assert far.certifies["outside"].startswith("of 500 photos of other things 0.0% pass")
    low = dataclasses.replace(tune, scope_scores=scores + 0.4)
    near = dataclasses.replace(outside, scope_scores=outside.scope_scores + 0.45)
    raised = recalibrate(bundle, tmp_path / "near", outside=near, **{**settings, "tune": low}).calibration
    assert raised.scope_threshold == pytest.approx(bundle.calibration.scope_threshold + 0.05, abs=0.02)
    assert raised.version != far.version
    # The threshold stays, and so does what it rests on.
    sharpened = load_bundle(tmp_path / "near")
    again = recalibrate(sharpened, tmp_path / "again", **settings).calibration
    assert (again.scope_threshold, again.certifies["outside"]) == (raised.scope_threshold, raised.certifies["outside"])


def test_photos_of_other_things_are_refused_where_the_model_computes_no_scope_score(bundle, tmp_path):
    blind = dataclasses.replace(bundle, calibration=dataclasses.replace(bundle.calibration, scope_threshold=None))
    made = create_exact_predictions(blind, 100, np.random.default_rng(1))
    made = dataclasses.replace(made, scope_scores=np.full(100, np.nan, np.float32))
    settings = {"split": "val", "backend": "onnxruntime-cpu", "guarantee": Guarantee()}
    with pytest.raises(ListingVisionError, match=r"computes no scope scores.* `listing-vision export`"):
        recalibrate(blind, tmp_path / "new", tune=made, tested=made, outside=made, **settings)


def test_bundles_are_never_overwritten(bundle, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="bundles are never overwritten"):
        recalibrate_bundle(bundle, tmp_path / "there")


def test_guarantees_hold_only_for_the_backend_that_they_were_made_with(bundle, tmp_path):
    new = recalibrate_bundle(bundle, tmp_path / "new", backend="onnxruntime-tensorrt")
    assert new.for_backend("onnxruntime-tensorrt").calibration.field("brand").threshold is not None
    here = new.for_backend("onnxruntime-cpu").calibration
    assert all(field.threshold is None for field in here.fields)
    assert "made with backend onnxruntime-tensorrt, served by onnxruntime-cpu" in here.field("brand").uncertified_reason
    # Two that say nothing of themselves may be two kinds.
    unknown = recalibrate_bundle(bundle, tmp_path / "unknown", backend="unknown")
    assert unknown.for_backend("unknown").calibration.field("brand").threshold is None
    # What is not guaranteed is left as it was.
    assert here.category_temperature == new.calibration.category_temperature


def test_a_certificate_names_all_that_it_holds_for(bundle):
    certifies = json.loads(bundle.calibration.to_json())["certifies"]
    assert set(certifies) == {
        "backend", "weights", "model", "taxonomy", "preprocessing", "precision", "split", "selected_on"
    }  # fmt: skip
    assert certifies["backend"] == "onnxruntime-cpu"
