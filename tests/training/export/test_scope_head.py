import numpy as np
import pytest
import torch

from training.export.scope_head import MAX_DIRECTIONS, fit_scope_head


def sample(rng, num, basis):
    return (rng.normal(1, 0.3, (num, len(basis))) @ basis + 0.02 * rng.normal(0, 1, (num, basis.shape[1]))).astype(
        np.float32
    )


def test_embeddings_across_the_directions_of_training_score_lower():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(0, 1, (200, 200)))[0]
    head = fit_scope_head(sample(rng, 500, basis[:20]))
    inside, outside = (head(torch.from_numpy(sample(rng, 300, rows))) for rows in (basis[:20], basis[100:120]))
    assert inside.min() > 0.95
    assert inside.max() <= 1 + 1e-5
    assert outside.max() < 0.5


def test_a_score_is_the_share_of_the_squared_length_within_the_directions():
    rng = np.random.default_rng(1)
    head = fit_scope_head(rng.normal(0, 1, (300, 100)).astype(np.float32))
    assert head.projection.shape == (100, MAX_DIRECTIONS)
    np.testing.assert_allclose(head.projection.T @ head.projection, np.eye(MAX_DIRECTIONS), atol=1e-4)
    embedding = rng.normal(0, 1, (1, 100)).astype(np.float32)
    within = head.projection.numpy().T @ embedding[0]
    expected = (within @ within) / (embedding[0] @ embedding[0])
    assert float(head(torch.from_numpy(embedding))) == pytest.approx(expected, rel=1e-4)


def test_few_photos_give_few_directions():
    head = fit_scope_head(np.eye(30, dtype=np.float32)[:3])
    assert head.projection.shape == (30, 3)
