import dataclasses
import shutil

import pytest

from tests.support.bundles import change_manifest, copy_version_0_1_bundle
from vision.bundle import load_bundle
from vision.bundle_manifest import check_model_name, read_manifest, write_manifest
from vision.errors import BundleError


@pytest.fixture
def folder(bundle, tmp_path):
    """A folder with the manifest of a bundle."""
    shutil.copy(bundle.folder / "manifest.json", tmp_path)
    return tmp_path


def assert_is_refused_in_one_line(folder, match):
    with pytest.raises(BundleError, match=match) as refused:
        read_manifest(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(folder))


def test_what_is_written_is_read(bundle, tmp_path):
    write_manifest(tmp_path, bundle.info, bundle.sha256)
    assert read_manifest(tmp_path) == (bundle.info, bundle.sha256)


def test_the_manifest_of_an_earlier_version_is_read(tmp_path):
    assert load_bundle(copy_version_0_1_bundle(tmp_path)).info.model_version == "03c6c8e484ab"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"schema_version": 1, "training": ' + '{"a":' * 900 + "1" + "}" * 901, "nested too deeply|was altered"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ("[]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("null", "holds no JSON object"),
        ("{}", "schema_version None is not 1"),
        ('{"schema_version": [1]}', r"schema_version \[1\] is not 1"),
        ('{"schema_version": "' + "x" * 10_000 + '"}', "is not 1, the one this version reads"),
        ('{"schema_version": 1}', "was altered"),
        ('{"schema_version": ' + "9" * 10_000 + "}", "is not JSON"),
    ],
    ids=lambda text: text[:20],
)
def test_a_manifest_that_is_none_is_refused_in_one_line(tmp_path, text, match):
    (tmp_path / "manifest.json").write_text(text)
    assert_is_refused_in_one_line(tmp_path, match)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    assert_is_refused_in_one_line(tmp_path, "is not JSON")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_name": 3}, "model_name 3 is not a text"),
        ({"model_name": ""}, "model_name '' is not a text"),
        ({"model_name": "x" * 101}, "model_name 'xxx.*… is not a text"),
        ({"model_name": "a\nb"}, r"model_name 'a\\nb' is not a text"),
        ({"model_name": "a\u202eb"}, r"model_name 'a\\u202eb' is not a text"),
        ({"model_name": " a"}, "model_name ' a' is not a text"),
        ({"model_version": {"a": 1}}, "model_version {'a': 1} is not a text"),
        ({"precision": "../fp32"}, r"precision '\.\./fp32' is not a word"),
        ({"taxonomy_version": ["a"]}, r"taxonomy_version \['a'\] is not a text"),
        ({"num_brands": "6"}, "num_brands '6' is not a number"),
        ({"num_categories": 0}, "num_categories 0 is not a number"),
        ({"embedding_size": True}, "embedding_size True is not a number"),
        ({"mean": 0.5}, "mean 0.5 is not a list of three numbers"),
        ({"std": [1, 2]}, r"std \[1, 2\] is not a list of three numbers"),
        ({"inputs": "photos"}, "inputs 'photos' is not a list of names"),
        ({"outputs": [[]]}, r"outputs \[\[\]\] is not a list of names"),
        ({"preprocessing": [1]}, r"preprocessing \[1\] is not an object"),
        ({"preprocessing": {"input_px": "64"}}, "preprocessing: "),
        ({"preprocessing": {"pixels": 64}}, "preprocessing: .*unexpected"),
        ({"training": 1}, "training 1 is not an object"),
        ({"parity": []}, r"parity \[\] is not an object"),
        ({"brand_head": "quadratic"}, "brand_head 'quadratic' is not one of linear, cosine"),
        ({"brand_head": ["linear"]}, "is not one of linear, cosine"),
        ({"backbone": None}, "lacks backbone"),
        ({"preprocessing": None, "mean": None}, "lacks mean, preprocessing"),
        ({"colour": "red"}, "'colour' is not known to this version"),
        ({"sha256": []}, "sha256 is no object"),
        ({"sha256": {"model.onnx": 1}}, "sha256 is no object"),
        ({"sha256": {"model.onnx": "abc"}}, "sha256 is no object"),
    ],
    ids=str,
)
def test_a_value_of_another_shape_is_named(folder, changes, match):
    change_manifest(folder, **changes)
    assert_is_refused_in_one_line(folder, match)


@pytest.mark.parametrize("name", ["listing-vision", "Früchte 2 (v1.3)", "果物", "x" * 100])
def test_a_name_may_have_letters_of_any_script(name):
    check_model_name(name)


@pytest.mark.parametrize("name", ["", " ", "a ", "a\tb", "a\x00", "x" * 101])
def test_a_name_that_cannot_be_printed_is_refused(name, bundle, tmp_path):
    with pytest.raises(BundleError, match="give 1 to 100 printable characters"):
        check_model_name(name)
    with pytest.raises(BundleError, match="model_name"):
        write_manifest(tmp_path, dataclasses.replace(bundle.info, model_name=name), bundle.sha256)
