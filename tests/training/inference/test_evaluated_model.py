import numpy as np
import pytest

from tests.support.bundles import copy_certified_for
from training.inference.evaluated_model import load_evaluated_model
from vision.bundle import load_bundle
from vision.errors import BundleError, ListingVisionError


def test_a_run_and_its_bundle_are_the_same_model(bundle, trained_run):
    of_run, of_bundle = load_evaluated_model(trained_run.folder), load_evaluated_model(bundle.folder)
    assert of_run.taxonomy == of_bundle.taxonomy
    assert of_run.preprocessing == of_bundle.preprocessing
    assert of_run.name == f"run {trained_run.folder}"
    assert of_bundle.name == f"bundle small {bundle.info.model_version}"
    assert not of_run.calibration.fields
    assert of_bundle.calibration == bundle.calibration
    of_run, of_bundle = (model.infer(bundle.golden.photos_nhwc) for model in (of_run, of_bundle))
    # Scope scores come with the export.
    for got, wanted in zip(of_run[:3], of_bundle[:3], strict=True):
        assert np.allclose(got, wanted, atol=1e-3)


def test_guarantees_of_originals_do_not_hold_for_renditions(bundle, trained_run, tmp_path):
    originals = copy_certified_for(bundle, tmp_path / "originals", "onnxruntime-cpu")
    renditions = copy_certified_for(bundle, tmp_path / "renditions", "onnxruntime-cpu@320px")

    def is_certified(folder, rendition_px):
        return load_evaluated_model(folder, rendition_px=rendition_px).calibration == load_bundle(folder).calibration

    assert [is_certified(originals, px) for px in (None, 320)] == [True, False]
    assert [is_certified(renditions, px) for px in (None, 320, 240)] == [False, True, False]
    with pytest.raises(ListingVisionError, match="leave --rendition out"):
        load_evaluated_model(trained_run.folder, rendition_px=320)


def test_a_folder_that_is_neither(tmp_path):
    with pytest.raises(BundleError, match="is not a model bundle"):
        load_evaluated_model(tmp_path)
