import numpy as np
import pytest

from training.inference.evaluated_model import load_evaluated_model
from vision.errors import BundleError


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


def test_a_folder_that_is_neither(tmp_path):
    with pytest.raises(BundleError, match="is not a model bundle"):
        load_evaluated_model(tmp_path)
