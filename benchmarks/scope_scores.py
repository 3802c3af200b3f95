"""Part of `benchmarks.scope`: the published scores that tell a model's products from other things, beside ours.

Each is higher for photos that look like the training set's. D is the width of the embedding, C the leaf categories.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from training.evaluation.ground_truth import build_ground_truth
from training.inference.predictions import predict
from vision.bundle import Bundle
from vision.engine import Logits, OnnxEngine
from vision.manifest import Manifest

__all__ = ["compute_auroc", "compute_auroc_by_score", "create_scores"]

NUM_NEIGHBOURS = 10
SHRINKAGE = 1e-3
"""Part of the mean variance that is added to each, so that covariances can be inverted."""
MAX_PRINCIPAL_DIMENSIONS = 512
"""Width of the subspace that ViM takes as that of products, as its authors do for embeddings of 2,048 values."""

Floats = npt.NDArray[np.floating]
Score = Callable[["Photos"], Floats]


class Photos(NamedTuple):
    """What the model computes for P photos."""

    embeddings: Floats
    """(P, D)."""
    category_logits: Floats
    """(P, C)."""
    scope_scores: Floats
    """(P,)."""
    leaves: npt.NDArray[np.int64]
    """(P,) the true leaf category; -1 where not known."""


def infer_photos(bundle: Bundle, engine: OnnxEngine, manifest: Manifest) -> Photos:
    embeddings: list[Floats] = []

    def infer(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        logits = engine.infer(photos_nhwc)
        embeddings.append(logits.embedding)
        return logits

    found = predict(manifest, bundle.taxonomy, bundle.info.preprocessing, infer)
    leaves = build_ground_truth(found.labels, bundle.taxonomy).leaves
    return Photos(np.concatenate(embeddings), found.category_logits, found.scope_scores, leaves)


def create_scores(train: Photos) -> dict[str, Score]:
    """Return the scores by name, fitted to photos of products."""
    return {
        "ours": lambda photos: photos.scope_scores,
        "maximum logit (Hendrycks et al. 2022)": lambda photos: photos.category_logits.max(axis=1),
        "energy (Liu et al. 2020)": lambda photos: logsumexp(photos.category_logits, axis=1),
        "nearest neighbours (Sun et al. 2022)": _fit_neighbours(train),
        "Mahalanobis (Lee et al. 2018)": _fit_mahalanobis(train, relative=False),
        "relative Mahalanobis (Ren et al. 2021)": _fit_mahalanobis(train, relative=True),
        "ViM (Wang et al. 2022)": _fit_vim(train),
    }


def _fit_neighbours(train: Photos) -> Score:
    """Minus the distance to the tenth nearest training photo, of embeddings of length 1."""

    def normalise(embeddings: Floats) -> Floats:
        normalised: Floats = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        return normalised

    known = normalise(train.embeddings)

    def score(photos: Photos) -> Floats:
        squared = 2 - 2 * normalise(photos.embeddings) @ known.T
        tenth: Floats = np.partition(squared, NUM_NEIGHBOURS - 1, axis=1)[:, NUM_NEIGHBOURS - 1]
        return -np.sqrt(np.maximum(tenth, 0))

    return score


def _fit_mahalanobis(train: Photos, *, relative: bool) -> Score:
    """Minus the distance to the nearest class mean; relative: less that to the mean of all."""
    labelled = train.leaves >= 0
    embeddings, leaves = train.embeddings[labelled].astype(np.float64), train.leaves[labelled]
    present, indices = np.unique(leaves, return_inverse=True)
    means = np.stack([embeddings[leaves == leaf].mean(axis=0) for leaf in present])
    within, around_all = _whiten(embeddings - means[indices]), _whiten(embeddings - embeddings.mean(axis=0))

    def score(photos: Photos) -> Floats:
        shown = photos.embeddings.astype(np.float64)
        to_means = ((shown @ within)[:, None] - (means @ within)[None]) ** 2
        nearest: Floats = to_means.sum(axis=2).min(axis=1)
        background: Floats = (((shown - embeddings.mean(axis=0)) @ around_all) ** 2).sum(axis=1)
        return -(nearest - background if relative else nearest)

    return score


def _whiten(centred: Floats) -> Floats:
    """(D, D) that gives rows of this covariance unit variance."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    whitened: Floats = vectors / np.sqrt(np.maximum(values, 0) + SHRINKAGE * values.mean())
    return whitened


def _fit_vim(train: Photos) -> Score:
    """Energy, less the part of the embedding outside the products' subspace, scaled to the logits.

    The origin is the mean of the training photos: an exported model does not tell its weights.
    """
    origin = train.embeddings.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((train.embeddings - origin).T))
    num_principal = min(MAX_PRINCIPAL_DIMENSIONS, len(origin) // 2)
    outside = vectors[:, : len(origin) - num_principal]

    def measure_residual(photos: Photos) -> Floats:
        residual: Floats = np.linalg.norm((photos.embeddings - origin) @ outside, axis=1)
        return residual

    scale = train.category_logits.max(axis=1).mean() / measure_residual(train).mean()
    return lambda photos: logsumexp(photos.category_logits, axis=1) - scale * measure_residual(photos)


def compute_auroc(inside: Floats, outside: Floats) -> float:
    """Return the share of pairs in which the score inside is the higher one; ties count half."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, side="left") + np.searchsorted(ordered, inside, side="right")
    return float(below.mean() / (2 * len(ordered)))


def compute_auroc_by_score(
    bundle: Bundle, train: Manifest, inside: Manifest, outside: Mapping[str, Manifest]
) -> dict[str, dict[str, float]]:
    """Return the AUROC of each score for each kind of other things, of photos alone.

    Args:
        bundle: the model.
        train: the photos that it was trained on.
        inside: other photos of its products.
        outside: photos of other things, by kind.
    """
    engine = OnnxEngine(bundle)
    scores = create_scores(infer_photos(bundle, engine, train))
    own = infer_photos(bundle, engine, inside)
    others = {kind: infer_photos(bundle, engine, manifest) for kind, manifest in outside.items()}
    return {
        name: {kind: compute_auroc(score(own), score(photos)) for kind, photos in others.items()}
        for name, score in scores.items()
    }
