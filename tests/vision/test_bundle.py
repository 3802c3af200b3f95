import dataclasses
import json
import shutil

import pytest

from vision.bundle import FILES, load_bundle
from vision.errors import BundleError


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle.folder, tmp_path / "copied")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused_by_name_of_the_file(copied, name):
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        load_bundle(copied)


def test_a_missing_file_is_named(copied):
    (copied / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        load_bundle(copied)


def test_no_bundle_says_what_makes_one(tmp_path):
    with pytest.raises(BundleError, match="listing-vision export"):
        load_bundle(tmp_path)


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_schema_version_is_refused(copied):
    change_manifest(copied, schema_version=99)
    with pytest.raises(BundleError, match="schema_version 99 is not 1"):
        load_bundle(copied)


def test_a_model_that_does_not_fit_its_taxonomy_is_refused(copied):
    change_manifest(copied, num_brands=3)
    with pytest.raises(BundleError, match="3 brand labels"):
        load_bundle(copied)


def test_a_certificate_of_another_precision_is_void(copied, bundle):
    assert bundle.calibration.certifies["precision"] == "fp32"
    change_manifest(copied, precision="int8")
    fields = load_bundle(copied).calibration.fields
    assert fields
    assert all(field.threshold is None and "precision changed" in field.why_not for field in fields)


def test_the_bundle_says_where_it_comes_from(bundle, small_recipe):
    assert bundle.info.training["recipe"]["batch_size"] == small_recipe.batch_size
    assert bundle.info.model_version == bundle.sha256["weights.safetensors"][:12]
    assert bundle.golden.photos_nhwc.shape[1:] == (64, 64, 3)
    assert dataclasses.asdict(bundle.info)["outputs"] == ("category_logits", "brand_logits", "embedding")
    assert bundle.info.backbone in (bundle.folder / "model_card.md").read_text()
