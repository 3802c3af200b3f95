import json
import shutil

import pytest

from tests.support.signing import create_key_pair
from vision.attestation import sign_bundle
from vision.bundle import BUNDLE_FILES
from vision.bundle_signature import verify_signature
from vision.errors import BundleError


@pytest.fixture
def folder(bundle, tmp_path):
    return shutil.copytree(bundle.folder, tmp_path / "bundle")


def test_the_attestation_states_each_guarantee_and_what_it_was_certified_for(bundle, folder, tmp_path):
    sign_bundle(folder, create_key_pair(tmp_path)[0])
    statement = json.loads((folder / "attestation.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digests = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert {name: digests[name] for name in BUNDLE_FILES} == dict(bundle.sha256)
    assert "manifest.json" in digests
    stated = statement["predicate"]
    assert (stated["model_version"], stated["calibration_version"]) == (
        bundle.info.model_version,
        bundle.calibration_version,
    )
    assert stated["certified_for"] == dict(bundle.calibration.certifies)
    for told, field in zip(stated["guarantees"], bundle.calibration.fields, strict=True):
        assert (told["field"], told["threshold"], told["num_errors"]) == (field.name, field.threshold, field.num_errors)
        assert told["precision"] == pytest.approx(1 - field.alpha)
        assert (told["threshold"] is None) == (told["uncertified_reason"] is not None)


def test_a_bundle_can_be_signed_again_with_another_key(folder, tmp_path):
    for name in ("old", "new"):
        private, public = create_key_pair(tmp_path, name)
        sign_bundle(folder, private)
        verify_signature(folder, public)
    with pytest.raises(BundleError, match="Key mismatch"):
        verify_signature(folder, tmp_path / "old.pub")


def test_only_what_belongs_to_a_bundle_is_signed(folder, tmp_path):
    private, _ = create_key_pair(tmp_path)
    (folder / "notes.txt").write_text("")
    with pytest.raises(BundleError, match=r"no part of one: notes\.txt"):
        sign_bundle(folder, private)
    (folder / "notes.txt").unlink()
    (folder / "model_card.md").write_text("another")
    with pytest.raises(BundleError, match=r"model_card\.md was altered"):
        sign_bundle(folder, private)
    assert not (folder / "model.sig").exists()


def test_whoever_may_read_the_bundle_may_read_its_signature(folder, tmp_path):
    (folder / "manifest.json").chmod(0o644)
    sign_bundle(folder, create_key_pair(tmp_path)[0])
    assert {(folder / name).stat().st_mode & 0o777 for name in ("model.sig", "attestation.json")} == {0o644}
