import shutil

import numpy as np
import pytest
import torch

from training.inference.features import extract_features, load_embedder, load_features
from training.trainer.distributed import Ranks
from training.trainer.probe_features import make_probe_features
from vision.errors import ManifestError
from vision.images import Preprocessing
from vision.manifest import Manifest

RANKS = Ranks(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def model():
    return load_embedder(None, input_px=48)[0]


@pytest.fixture
def manifest(synthetic_dataset, tmp_path):
    shutil.copytree(synthetic_dataset, tmp_path / "data")
    return Manifest.load(str(tmp_path / "data" / "manifest.parquet"))


def make(model, manifest, cache, *, stop=lambda: False):
    train, val = (manifest.select_split(split) for split in ("train", "val"))
    return make_probe_features(model, train, {48}, val, 32, cache=cache, ranks=RANKS, stop=stop)


def test_a_stop_saves_what_is_made_and_the_same_call_resumes(model, manifest, tmp_path):
    asked = iter([False, True])
    assert make(model, manifest, tmp_path / "cache", stop=lambda: next(asked)) is None
    parts = list((tmp_path / "cache").glob("*.parts/*.npz"))
    assert len(parts) == 1
    written = parts[0].stat().st_mtime_ns
    seen = []

    def look():
        if parts[0].exists():  # until the parts are joined
            seen.append(parts[0].stat().st_mtime_ns)
        return False

    features = make(model, manifest, tmp_path / "cache", stop=look)
    assert set(seen) == {written}
    for split, folder, side in (("train", features.train[48], 48), ("val", features.val, 32)):
        wanted = extract_features(model, manifest.select_split(split), Preprocessing(input_px=side))
        found = load_features(folder)
        np.testing.assert_array_equal(found.values, wanted.values)
        np.testing.assert_array_equal(found.rows, np.arange(len(manifest.select_split(split))))
    assert not list((tmp_path / "cache").glob("*.parts"))


def test_a_bad_photo_of_train_is_named_and_read_again_once_repaired(model, manifest, tmp_path):
    path = tmp_path / "data" / manifest.select_split("train").column("photo")[3].as_py()
    data = path.read_bytes()
    path.write_bytes(b"broken")
    with pytest.raises(ManifestError, match=f"needs every training photo(.|\n)*{path.name}"):
        make(model, manifest, tmp_path / "cache")
    path.write_bytes(data)
    features = make(model, manifest, tmp_path / "cache")
    assert len(load_features(features.train[48]).rows) == len(manifest.select_split("train"))


def test_a_bad_photo_of_val_is_left_out(model, manifest, tmp_path):
    path = tmp_path / "data" / manifest.select_split("val").column("photo")[0].as_py()
    path.write_bytes(b"broken")
    found = load_features(make(model, manifest, tmp_path / "cache").val)
    np.testing.assert_array_equal(found.rows, np.arange(1, len(manifest.select_split("val"))))


def test_without_a_probe_nothing_is_made(model, manifest, tmp_path):
    train, val = (manifest.select_split(split) for split in ("train", "val"))
    found = make_probe_features(model, train, set(), val, 32, cache=tmp_path / "c", ranks=RANKS, stop=lambda: False)
    assert (found.train, found.val) == ({}, None)
    assert not (tmp_path / "c").exists()
