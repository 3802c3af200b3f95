import shutil

import numpy as np
import pytest
import torch

from training.inference.features import extract_features, load_embedder
from training.inference.pretrained import create_backbone
from vision.errors import BundleError, ListingVisionError, ManifestError
from vision.images import Preprocessing, prepare_photo
from vision.manifest import Manifest
from vision.photo_files import read_photo

PX = Preprocessing(input_px=48)


@pytest.fixture(scope="module")
def embedder():
    return load_embedder(None, input_px=48)[0]


@pytest.fixture
def copy_dataset(synthetic_dataset, tmp_path):
    """A manifest of its own photos, two of which cannot be used."""
    shutil.copytree(synthetic_dataset, tmp_path / "data")
    manifest = Manifest.load(str(tmp_path / "data" / "manifest.parquet")).take(np.arange(12))
    with open(manifest.get_photo_url(3), "r+b") as file:
        file.truncate(700)
    (tmp_path / "data" / manifest.column("photo")[7].as_py()).unlink()
    return manifest


def test_features_are_the_models_embeddings_of_the_usable_photos(copy_dataset, embedder):
    features = extract_features(embedder, copy_dataset, PX, batch_size=5)
    assert features.rows.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert [copy_dataset.get_photo_url(row) in said for row, said in zip((3, 7), features.unusable, strict=True)] == [
        True,
        True,
    ]
    photos = np.stack([prepare_photo(read_photo(copy_dataset.get_photo_url(row)), PX) for row in features.rows])
    with torch.inference_mode():
        wanted = embedder(torch.from_numpy(photos)).embedding.numpy()
    assert features.values.dtype == np.float32
    np.testing.assert_allclose(features.values, wanted, atol=1e-4)


def test_a_backbone_alone_is_normalised_as_it_was_trained(copy_dataset, embedder):
    backbone = create_backbone("tf_efficientnet_lite0", "imagenet")
    alone = extract_features(backbone, copy_dataset, PX).values
    np.testing.assert_array_equal(alone, extract_features(embedder, copy_dataset, PX).values)


def test_runs_and_bundles_bring_their_own_size(trained_run, bundle, synthetic_dataset, tmp_path):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).take(np.arange(3))
    by_run, preprocessing = load_embedder(trained_run.folder)
    by_bundle, same = load_embedder(bundle.folder)
    assert preprocessing == same == Preprocessing(input_px=64)
    values = [extract_features(model, manifest, same).values for model in (by_run, by_bundle)]
    np.testing.assert_array_equal(*values)
    with pytest.raises(BundleError, match="not a model bundle"):
        load_embedder(tmp_path)
    with pytest.raises(ListingVisionError, match="input_px 8 is outside"):
        load_embedder(None, input_px=8)


def test_no_usable_photo_is_an_error_that_leaves_no_cache(synthetic_dataset, embedder, tmp_path):
    manifest = Manifest.from_rows([{"listing_id": "a", "photo": "missing.jpg"}], str(tmp_path))
    with pytest.raises(ManifestError, match=r"missing\.jpg"):
        extract_features(embedder, manifest, PX, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_answers_without_photos_whatever_the_labels(copy_dataset, embedder, tmp_path):
    cache = tmp_path / "cache"
    first = extract_features(embedder, copy_dataset, PX, cache=cache)
    np.testing.assert_array_equal(first.values, extract_features(embedder, copy_dataset, PX).values)
    shutil.rmtree(copy_dataset.get_photo_url(0).rsplit("/", 1)[0])
    relabelled = copy_dataset.table.set_column(2, "category", [["Home > Mugs"] * len(copy_dataset)])
    again = extract_features(embedder, Manifest(relabelled, copy_dataset.base_url), PX, cache=cache)
    assert isinstance(again.values, np.memmap)
    np.testing.assert_array_equal(again.values, first.values)
    assert (again.rows.tolist(), again.unusable) == (first.rows.tolist(), first.unusable)
    assert len(list(cache.iterdir())) == 1


def test_other_photos_sizes_and_weights_are_other_caches(synthetic_dataset, embedder, tmp_path):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).take(np.arange(2))
    other = create_backbone("tf_efficientnet_lite0", "none")
    for model, rows, side in ((embedder, [0, 1], 48), (embedder, [1, 0], 48), (embedder, [0, 1], 64), (other, [0], 48)):
        extract_features(model, manifest.take(np.array(rows)), Preprocessing(input_px=side), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
