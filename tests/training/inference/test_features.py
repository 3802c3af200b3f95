import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.inference.features import fit_softmax, load_embedder, photo_features, softmax_probabilities
from training.inference.pretrained import create_backbone
from vision.errors import BundleError, ListingVisionError, ManifestError
from vision.images import Preprocessing, prepare_photo
from vision.manifest import Manifest, read_photo

PX = Preprocessing(input_px=48)


@pytest.fixture(scope="module")
def embedder():
    return load_embedder(None, input_px=48)[0]


@pytest.fixture
def copy_dataset(synthetic_dataset, tmp_path):
    """A manifest of its own photos, two of which cannot be used."""
    shutil.copytree(synthetic_dataset, tmp_path / "data")
    manifest = Manifest.load(str(tmp_path / "data" / "manifest.parquet")).take(np.arange(12))
    with open(manifest.photo_url(3), "r+b") as file:
        file.truncate(700)
    (tmp_path / "data" / manifest.column("photo")[7].as_py()).unlink()
    return manifest


def table(seed: int = 0, *, num: int = 60, num_features: int = 5, num_classes: int = 3):
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    centres = rng.normal(size=(num_classes, num_features))
    return (centres[labels] + rng.normal(size=(num, num_features))).astype(np.float32), labels


def test_features_are_the_models_embeddings_of_the_usable_photos(copy_dataset, embedder):
    features = photo_features(embedder, copy_dataset, PX, batch_size=5)
    assert features.rows.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert [copy_dataset.photo_url(row) in said for row, said in zip((3, 7), features.unusable, strict=True)] == [
        True,
        True,
    ]
    photos = np.stack([prepare_photo(read_photo(copy_dataset.photo_url(row)), PX) for row in features.rows])
    with torch.inference_mode():
        wanted = embedder(torch.from_numpy(photos)).embedding.numpy()
    assert features.values.dtype == np.float32
    np.testing.assert_allclose(features.values, wanted, atol=1e-4)


def test_a_backbone_alone_is_normalised_as_it_was_trained(copy_dataset, embedder):
    backbone = create_backbone("tf_efficientnet_lite0", "imagenet")
    alone = photo_features(backbone, copy_dataset, PX).values
    np.testing.assert_array_equal(alone, photo_features(embedder, copy_dataset, PX).values)


def test_runs_and_bundles_bring_their_own_size(trained_run, bundle, synthetic_dataset, tmp_path):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).take(np.arange(3))
    by_run, preprocessing = load_embedder(trained_run.folder)
    by_bundle, same = load_embedder(bundle.folder)
    assert preprocessing == same == Preprocessing(input_px=64)
    values = [photo_features(model, manifest, same).values for model in (by_run, by_bundle)]
    np.testing.assert_array_equal(*values)
    with pytest.raises(BundleError, match="not a model bundle"):
        load_embedder(tmp_path)
    with pytest.raises(ListingVisionError, match="input_px 8 is outside"):
        load_embedder(None, input_px=8)


def test_no_usable_photo_is_an_error_that_leaves_no_cache(synthetic_dataset, embedder, tmp_path):
    manifest = Manifest.from_rows([{"listing_id": "a", "photo": "missing.jpg"}], str(tmp_path))
    with pytest.raises(ManifestError, match=r"missing\.jpg"):
        photo_features(embedder, manifest, PX, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_answers_without_photos_whatever_the_labels(copy_dataset, embedder, tmp_path):
    cache = tmp_path / "cache"
    first = photo_features(embedder, copy_dataset, PX, cache=cache)
    np.testing.assert_array_equal(first.values, photo_features(embedder, copy_dataset, PX).values)
    shutil.rmtree(copy_dataset.photo_url(0).rsplit("/", 1)[0])
    relabelled = copy_dataset.table.set_column(2, "category", [["Home > Mugs"] * len(copy_dataset)])
    again = photo_features(embedder, Manifest(relabelled, copy_dataset.base_url), PX, cache=cache)
    assert isinstance(again.values, np.memmap)
    np.testing.assert_array_equal(again.values, first.values)
    assert (again.rows.tolist(), again.unusable) == (first.rows.tolist(), first.unusable)
    assert len(list(cache.iterdir())) == 1


def test_other_photos_sizes_and_weights_are_other_caches(synthetic_dataset, embedder, tmp_path):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).take(np.arange(2))
    other = create_backbone("tf_efficientnet_lite0", "none")
    for model, rows, side in ((embedder, [0, 1], 48), (embedder, [1, 0], 48), (embedder, [0, 1], 64), (other, [0], 48)):
        photo_features(model, manifest.take(np.array(rows)), Preprocessing(input_px=side), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def reference_gradient(features, labels, weight, bias, *, l2, weights):
    """Of the documented loss, in the space of standardised features, by NumPy."""
    shares = weights / weights.sum()
    x = features.astype(np.float64)
    mean = shares @ x
    scale = np.sqrt(shares @ (x - mean) ** 2)
    z, w = (x - mean) / scale, weight * scale
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - np.eye(len(bias))[labels]) * shares[:, None]
    return error.T @ z + l2 * w, error.sum(axis=0)


@given(st.integers(0, 1000), st.sampled_from([1e-3, 1e-2, 1.0]), st.booleans())
def test_the_gradient_vanishes_at_the_answer(seed, l2, weighted):
    features, labels = table(seed)
    features = features * np.float32(30) + np.float32(100)
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(labels)) if weighted else np.ones(len(labels))
    weight, bias = fit_softmax(features, labels, 3, l2=l2, weights=weights)
    for gradient in reference_gradient(features, labels, weight, bias, l2=l2, weights=weights):
        # Features near 100 in float32 leave the optimiser that much noise.
        assert np.abs(gradient).max() < 1e-4


def test_a_weight_of_two_is_a_row_twice_and_of_none_no_row():
    features, labels = table()
    counts = np.arange(len(labels)) % 3
    repeated = np.repeat(np.arange(len(labels)), counts)
    once = fit_softmax(features, labels, 3, l2=0.01, weights=counts)
    twice = fit_softmax(features[repeated], labels[repeated], 3, l2=0.01)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_the_same_input_gives_the_same_bits():
    features, labels = table()
    first, second = (fit_softmax(features, labels, 3, l2=0.01) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_a_class_without_rows_has_probability_0_and_a_constant_feature_no_say():
    features, labels = table()
    features[:, 2] = 0.1
    weight, bias = fit_softmax(features, labels * 2, 6, l2=0.01)
    probabilities = softmax_probabilities(features, weight, bias)
    assert (probabilities[:, [1, 3, 5]] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.abs(weight[:, 2]).max() < 1e-3
    assert (probabilities.argmax(axis=1) == labels * 2).mean() > 0.6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"l2": 0.0}, "l2 is 0.0"),
        ({"labels": np.array([0, 1])}, "60 rows of features and 2 labels"),
        ({"labels": np.arange(60) % 4}, "labels 0…3 are outside 0…2"),
        ({"labels": np.arange(60) % 3 - 1}, "leave out rows without a label"),
        ({"weights": np.zeros(60)}, "not all of them 0"),
        ({"weights": np.ones(3)}, r"weights of shape \(3,\)"),
    ],
)
def test_wrong_input_is_named(change, said):
    features, labels = table()
    arguments = {"features": features, "labels": labels, "num_classes": 3, "l2": 0.01} | change
    with pytest.raises(ListingVisionError, match=said):
        fit_softmax(**arguments)
