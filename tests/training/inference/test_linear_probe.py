import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.inference.linear_probe import compute_softmax_probabilities, fit_softmax
from vision.errors import ListingVisionError


def table(seed: int = 0, *, num: int = 60, num_features: int = 5, num_classes: int = 3):
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    centres = rng.normal(size=(num_classes, num_features))
    return (centres[labels] + rng.normal(size=(num, num_features))).astype(np.float32), labels


def reference_gradient(features, labels, weight, bias, *, l2, weights):
    """Return the documented loss, in the space of standardised features, by NumPy."""
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
    probabilities = compute_softmax_probabilities(features, weight, bias)
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
