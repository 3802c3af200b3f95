import dataclasses
import json
import shutil

import pytest

from tests.support.bundles import change_manifest
from vision.bundle import (
    BUNDLE_FILES,
    UNKNOWN_BACKEND,
    check_beside,
    load_bundle,
    name_rendition_backend,
    seal_bundle,
)
from vision.errors import BundleError
from vision.runtime.files import compute_sha256


@pytest.fixture
def copy_bundle(bundle, tmp_path):
    return shutil.copytree(bundle.folder, tmp_path / "copied")


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_changed_byte_is_refused_by_name_of_the_file(copy_bundle, name):
    path = copy_bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        load_bundle(copy_bundle)


def test_an_optional_file_is_hashed_like_the_rest(bundle, copy_bundle):
    (copy_bundle / "model.pt2").write_bytes(b"compiled")
    with pytest.raises(BundleError, match=r"no model\.pt2; export the run again"):
        _ = load_bundle(copy_bundle).aot_inductor_path  # there, but not sealed
    seal_bundle(copy_bundle, bundle.info)
    loaded = load_bundle(copy_bundle)
    assert loaded.files == (*BUNDLE_FILES, "model.pt2")
    assert loaded.aot_inductor_path == copy_bundle / "model.pt2"
    (copy_bundle / "model.pt2").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"model\.pt2 was altered"):
        load_bundle(copy_bundle)
    (copy_bundle / "model.pt2").unlink()
    with pytest.raises(BundleError, match=r"model\.pt2 is missing"):
        load_bundle(copy_bundle)


def test_a_missing_file_is_named(copy_bundle):
    (copy_bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        load_bundle(copy_bundle)


def test_whoever_may_read_a_file_of_it_may_read_them_all(bundle):
    modes = {(bundle.folder / name).stat().st_mode for name in (*BUNDLE_FILES, "manifest.json")}
    assert len(modes) == 1


def test_no_bundle_says_what_makes_one(tmp_path):
    with pytest.raises(BundleError, match="listing-vision export"):
        load_bundle(tmp_path)


def test_a_changed_value_in_the_manifest_itself_is_refused(copy_bundle):
    path = copy_bundle / "manifest.json"
    path.write_text(path.read_text().replace('"model_name": "small"', '"model_name": "smell"'))
    with pytest.raises(BundleError, match=r"manifest\.json was altered"):
        load_bundle(copy_bundle)


def test_a_certificate_does_not_outlive_its_taxonomy(copy_bundle, bundle):
    path = copy_bundle / "taxonomy.json"
    raw = json.loads(path.read_text())
    raw["version"] = "moved-2"
    path.write_text(json.dumps(raw))
    change_manifest(copy_bundle, sha256={**bundle.sha256, "taxonomy.json": compute_sha256(path)})
    fields = load_bundle(copy_bundle).calibration.fields
    assert all(field.threshold is None and "taxonomy changed" in field.uncertified_reason for field in fields)


def test_another_schema_version_is_refused(copy_bundle):
    change_manifest(copy_bundle, schema_version=99)
    with pytest.raises(BundleError, match="schema_version 99 is not 1"):
        load_bundle(copy_bundle)


def test_a_model_that_does_not_fit_its_taxonomy_is_refused(copy_bundle):
    change_manifest(copy_bundle, num_brands=3)
    with pytest.raises(BundleError, match="3 brand labels"):
        load_bundle(copy_bundle)


def test_a_certificate_of_another_precision_is_void(copy_bundle, bundle):
    assert bundle.calibration.certifies["precision"] == "fp32"
    change_manifest(copy_bundle, precision="int8")
    fields = load_bundle(copy_bundle).calibration.fields
    assert fields
    assert all(field.threshold is None and "precision changed" in field.uncertified_reason for field in fields)


def test_a_release_keeps_its_name_where_its_promises_are_void(bundle):
    elsewhere = bundle.for_backend("another")
    assert all(field.threshold is None for field in elsewhere.calibration.fields)
    assert elsewhere.release == bundle.release
    assert elsewhere.calibration_version == bundle.calibration.version


def test_the_bundle_says_where_it_comes_from(bundle, small_recipe):
    assert bundle.info.training["recipe"]["batch_size"] == small_recipe.batch_size
    assert bundle.info.model_version == bundle.sha256["weights.safetensors"][:12]
    assert bundle.golden.photos_nhwc.shape[1:] == (64, 64, 3)
    assert dataclasses.asdict(bundle.info)["outputs"] == ("category_logits", "brand_logits", "embedding", "scope_score")
    assert bundle.info.backbone in (bundle.folder / "model_card.md").read_text()


def test_the_version_is_that_of_the_weights(copy_bundle, bundle):
    version = bundle.info.model_version
    for claimed in ("0123456789ab", version[:11], f"{version}-int8", f"{version}0", "../" + version[:9]):
        change_manifest(copy_bundle, model_version=claimed)
        with pytest.raises(BundleError, match=f"model_version '{claimed}' is not that of its weights, {version}"):
            load_bundle(copy_bundle)
    change_manifest(copy_bundle, model_version=f"{version}-int8", precision="int8")
    assert load_bundle(copy_bundle).info.precision == "int8"


def test_another_model_of_the_same_version_may_not_be_loaded_beside(copy_bundle, bundle):
    check_beside(load_bundle(copy_bundle), bundle)
    with (copy_bundle / "model.onnx").open("ab") as file:
        file.write(b"\x32\x01x")  # a doc_string, which changes nothing but the hash
    change_manifest(copy_bundle, sha256={**bundle.sha256, "model.onnx": compute_sha256(copy_bundle / "model.onnx")})
    with pytest.raises(BundleError, match=r"has the model version of the loaded .*, but another model\.onnx"):
        check_beside(load_bundle(copy_bundle), bundle)


@pytest.mark.parametrize("name", ["taxonomy.json", "calibration.json"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "3", '{"schema_version": 1}'], ids=["deep", "list", "3", "empty"]
)
def test_a_part_of_another_shape_is_refused_in_one_line(copy_bundle, bundle, name, text):
    (copy_bundle / name).write_text(text)
    change_manifest(copy_bundle, sha256={**bundle.sha256, name: compute_sha256(copy_bundle / name)})
    with pytest.raises(BundleError, match=r"^bundle ") as refused:
        load_bundle(copy_bundle)
    assert "\n" not in str(refused.value)


def test_renditions_make_another_backend_unless_it_is_unknown():
    assert name_rendition_backend("onnxruntime-cpu", None) == "onnxruntime-cpu"
    assert name_rendition_backend("onnxruntime-cpu", 320) == "onnxruntime-cpu@320px"
    assert name_rendition_backend(UNKNOWN_BACKEND, 320) == UNKNOWN_BACKEND
