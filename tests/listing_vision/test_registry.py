import shutil
from types import SimpleNamespace

import pytest

from listing_vision.registry import pull_bundle, push_bundle
from tests.support.signing import create_key_pair
from vision.attestation import sign_bundle
from vision.bundle import BUNDLE_FILES, seal_bundle
from vision.bundle_signature import SIGNATURE_FILE
from vision.errors import BundleError


def list_files(folder):
    return {path.name for path in folder.iterdir()}


def test_a_bundle_goes_through_a_folder_in_the_hubs_layout(bundle, tmp_path):
    pushed = push_bundle(bundle.folder, str(tmp_path / "hub"))
    assert list_files(tmp_path / "hub") == {"README.md", "manifest.json", *BUNDLE_FILES}
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: listing-vision\npipeline_tag: image-classification\n")
    assert card.endswith((bundle.folder / "model_card.md").read_text())
    pulled = pull_bundle(pushed, tmp_path / "pulled")
    assert (pulled.release, pulled.sha256) == (bundle.release, bundle.sha256)
    assert list_files(tmp_path / "pulled") == {"manifest.json", *BUNDLE_FILES}
    with pytest.raises(BundleError, match="exists"):
        push_bundle(bundle.folder, str(tmp_path / "hub"))
    with pytest.raises(BundleError, match="exists"):
        pull_bundle(pushed, tmp_path / "pulled")


def test_a_compiled_network_and_its_signature_go_along(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "compiled")
    (folder / "model.pt2").write_bytes(b"compiled")
    seal_bundle(folder, bundle.info)
    private, public = create_key_pair(tmp_path)
    sign_bundle(folder, private)
    pulled = pull_bundle(push_bundle(folder, str(tmp_path / "hub")), tmp_path / "pulled", public_key=public)
    assert pulled.aot_inductor_path.read_bytes() == b"compiled"


def test_what_was_altered_on_the_way_is_refused(bundle, tmp_path):
    pushed = push_bundle(bundle.folder, str(tmp_path / "hub"))
    (tmp_path / "hub" / "model.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        pull_bundle(pushed, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_signature_travels_along_and_can_be_required(bundle, tmp_path):
    private, public = create_key_pair(tmp_path)
    signed = shutil.copytree(bundle.folder, tmp_path / "bundle")
    sign_bundle(signed, private)
    push_bundle(signed, str(tmp_path / "hub"))
    pull_bundle(str(tmp_path / "hub"), tmp_path / "pulled", public_key=public)
    push_bundle(bundle.folder, str(tmp_path / "unsigned"))
    with pytest.raises(BundleError, match=f"no {SIGNATURE_FILE}"):
        pull_bundle(str(tmp_path / "unsigned"), tmp_path / "another", public_key=public)
    assert not (tmp_path / "another").exists()


def test_the_hub_gets_one_commit_and_gives_a_revision(bundle, tmp_path, monkeypatch):
    """The Hub's client is replaced by one that keeps a folder: no Hub can be reached from a test."""
    stored, calls = tmp_path / "stored", []

    class Api:
        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, stored)
            calls.append((repo_id, commit_message))
            return SimpleNamespace(oid="c0ffee")

    def download(repository, *, revision, local_dir, allow_patterns):
        calls.append((repository, revision))
        for name in list_files(stored) & set(allow_patterns):
            shutil.copyfile(stored / name, f"{local_dir}/{name}")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pushed = push_bundle(bundle.folder, "hf://shop/small")
    assert pushed == "hf://shop/small@c0ffee"
    assert "README.md" in list_files(stored)
    assert pull_bundle(pushed, tmp_path / "pulled").release == bundle.release
    pull_bundle("hf://shop/small", tmp_path / "newest")
    assert calls == [
        ("shop/small", {"private": True, "exist_ok": True}),
        ("shop/small", f"Release {bundle.release}"),
        ("shop/small", "c0ffee"),
        ("shop/small", None),
    ]


def test_a_registry_that_fails_is_named(bundle, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(BundleError, match="cannot be pulled from hf://shop/small: no route to host"):
        pull_bundle("hf://shop/small", tmp_path / "pulled")
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(BundleError, match=r"needs the package 'mlflow'; install listing-vision\[mlflow\]"):
        push_bundle(bundle.folder, "models:/small")


@pytest.mark.filterwarnings("default")  # of MLflow's own packages
def test_a_bundle_goes_through_a_local_mlflow_registry(bundle, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"file://{tmp_path / 'store'}")
    assert push_bundle(bundle.folder, "models:/small") == "models:/small/1"
    assert push_bundle(bundle.folder, "models:/small") == "models:/small/2"
    pulled = pull_bundle("models:/small/2", tmp_path / "pulled")
    assert (pulled.release, pulled.sha256) == (bundle.release, bundle.sha256)
    with pytest.raises(BundleError, match=r"cannot be pulled from models:/small/9: .*"):
        pull_bundle("models:/small/9", tmp_path / "another")
