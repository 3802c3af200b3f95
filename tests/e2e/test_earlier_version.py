"""A bundle that version 0.1.0 wrote, before its modules moved, gives the same results; an unfinished run is refused.

The decoder has changed since, which voids the bundle; but for that it is as it was.
"""

import json
import shutil

import numpy as np
import pytest
from google.protobuf import json_format

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api import responses
from tests.support.bundles import VERSION_0_1, copy_version_0_1_bundle
from tests.support.helpers import create_trainer
from training.data.synthetic import create_synthetic_dataset
from training.errors import RunError
from training.export.torchscript import load_torchscript
from training.inference.forward import torch_forward
from training.inference.network import load_bundle_model
from training.run import Run
from vision.bundle import load_bundle
from vision.engine import OnnxEngine
from vision.errors import BundleError


@pytest.fixture(scope="module")
def earlier_bundle(tmp_path_factory):
    return load_bundle(copy_version_0_1_bundle(tmp_path_factory.mktemp("earlier")))


def test_a_bundle_of_another_decoder_is_refused():
    with pytest.raises(BundleError, match=r"decoder_revision 2 is not 3.*export the model again"):
        load_bundle(VERSION_0_1 / "bundle")


def test_a_bundle_gives_the_logits_that_it_recorded(earlier_bundle):
    golden = earlier_bundle.golden
    engines = {
        "onnx": OnnxEngine(earlier_bundle).infer,
        "torchscript": torch_forward(load_torchscript(earlier_bundle.torchscript_path)),
        "weights": torch_forward(load_bundle_model(earlier_bundle).eval()),
    }
    for name, infer in engines.items():
        logits = infer(golden.photos_nhwc)
        np.testing.assert_allclose(logits.category, golden.category_logits, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(logits.brand, golden.brand_logits, atol=1e-4, err_msg=name)


def test_a_bundle_gives_the_suggestion_that_version_0_1_gave(earlier_bundle):
    logits = OnnxEngine(earlier_bundle).infer(earlier_bundle.golden.photos_nhwc)
    response = responses.build_response(earlier_bundle, [None] * len(logits.category), logits)
    expected = json.loads((VERSION_0_1 / "suggestion.json").read_text())
    for ours, theirs in zip(response.category_path, expected["category_path"], strict=True):
        assert ours.category_id == theirs["category_id"]
        assert (ours.action == pb.ACTION_PREFILL) == (theirs["outcome"] == "SUGGESTION_OUTCOME_FILL")
        assert ours.not_prefilled.message == theirs.get("explanation", "")
        assert ours.probability == pytest.approx(theirs["probability"], abs=1e-4)
    # A brand of 17 % is not offered any more, but is still the first of the alternatives.
    assert (response.brand.kind, response.brand.brand_id) == (pb.BRAND_KIND_UNDETERMINED, "")
    assert response.brand_alternatives[0].brand_id == expected["brand"]["brand_id"]
    model = json_format.MessageToDict(response.model, preserving_proto_field_name=True)
    # The hash of the calibration, which names another decoder now.
    assert model.pop("calibration_version") != expected["model"].pop("calibration_version")
    assert model == expected["model"]
    likely = [one.category_id for one in response.category_alternatives]
    assert likely == [one["category_id"] for one in expected["alternatives"]]


def test_an_unfinished_run_is_refused_and_stays_as_it_is(tmp_path):
    """Its checkpoint lacks what runs record now."""
    data, folder = tmp_path / "data", shutil.copytree(VERSION_0_1 / "run", tmp_path / "run")
    manifest, taxonomy = create_synthetic_dataset(data, listings={"train": 24, "val": 20, "test": 4}, seed=1)
    manifest.save(str(data / "manifest.parquet"))
    taxonomy.save(data / "taxonomy.json")
    with pytest.raises(RunError, match=r"holds a run with another recipe .*give another --run folder"):
        create_trainer(folder, data, Run(folder).recipe).run()
    found, before = (
        {p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        for top in (folder, VERSION_0_1 / "run")
    )
    assert found == before
