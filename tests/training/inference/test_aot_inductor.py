import json

import pytest
import torch

from training.api import evaluate
from training.inference.aot_inductor import AotInductorEngine, find_target_cpu, load_aot_inductor
from training.inference.evaluated_model import load_evaluated_model
from vision.engine import check_golden
from vision.errors import BundleError, EngineUnavailable, ListingVisionError


def test_the_engine_answers_as_the_golden_photos_say_and_names_itself(pt2_bundle):
    engine = AotInductorEngine(pt2_bundle)
    check_golden(pt2_bundle, engine.infer(pt2_bundle.golden.photos_nhwc))
    assert engine.backend == "aot-inductor-cpu"


def test_a_bundle_is_evaluated_by_its_compiled_network(pt2_bundle, synthetic_dataset):
    manifest = synthetic_dataset / "manifest.parquet"
    compiled = evaluate(pt2_bundle.folder, manifest, engine="aot-inductor")
    by_onnx = evaluate(pt2_bundle.folder, manifest)
    assert compiled.figures["photo"]["num"] == by_onnx.figures["photo"]["num"] > 0
    assert compiled.predictions.category_logits == pytest.approx(by_onnx.predictions.category_logits, abs=1e-3)
    # Certified with ONNX Runtime, so no guarantee holds here.
    reasons = {field.uncertified_reason for field in compiled.model.calibration.fields}
    assert reasons == {"certificate void: made with backend onnxruntime-cpu, served by aot-inductor-cpu"}


def test_an_older_cpu_than_it_was_compiled_for_is_refused(pt2_bundle, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(EngineUnavailable, match="export the run here with --pt2"):
        AotInductorEngine(pt2_bundle)


def test_what_a_cpu_can_run_follows_from_its_architecture(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert find_target_cpu() == "aarch64"


def test_a_bundle_without_it_says_what_makes_one(bundle, trained_run):
    with pytest.raises(BundleError, match=r"has no model\.pt2; export the run again with --pt2"):
        load_evaluated_model(bundle.folder, engine="aot-inductor")
    with pytest.raises(ListingVisionError, match="is a run, evaluated by its weights"):
        load_evaluated_model(trained_run.folder, engine="aot-inductor")
    with pytest.raises(ListingVisionError, match="engine 'tvm' is not one of onnxruntime, aot-inductor"):
        load_evaluated_model(bundle.folder, engine="tvm")


def test_a_file_that_is_no_package_is_refused(tmp_path):
    (tmp_path / "model.pt2").write_text(json.dumps({}))
    with pytest.raises(EngineUnavailable, match=r"model\.pt2 cannot be loaded by PyTorch"):
        load_aot_inductor(tmp_path / "model.pt2")
