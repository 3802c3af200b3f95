"""How much photos of one listing may differ: the agreement limit, from groups and mixtures of tune photos."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from training.calibration.splits import CalibrationListings
from vision.calibration import Calibration
from vision.taxonomy import Taxonomy

__all__ = ["DEFAULT_AGREEMENT_LIMIT", "fit_agreement_limit"]

DEFAULT_AGREEMENT_LIMIT = 0.02
"""Where the tune photos are too few to fit one; see `Calibration.agreement_limit`."""
_LIMITS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_MIN_PHOTOS = 200
"""Tune photos of leaf categories that have another one, from which on the limit is fitted."""
_NUM_DRAWN = 1000
"""Groups, and mixtures, that are drawn."""
_MAX_PHOTOS_PER_GROUP = 5
_MAX_MIXED_SHARE = 0.02
"""Share of mixtures of two roots of which a category may be likely and uncontradicted."""
_MAX_HONEST_SHARE = 0.01
"""Share of groups of one leaf that may lose a likely step."""
_LIKELY = 0.5
"""Probability from which on a step counts as one that may be filled; thresholds are certified only later."""

Ints = npt.NDArray[np.int64]


def fit_agreement_limit(tune: CalibrationListings, taxonomy: Taxonomy, calibration: Calibration) -> float:
    """Return the lowest limit at which few mixtures of photos of two roots stay uncontradicted.

    Never one that takes a likely step from more than a few groups of two to five photos of one leaf. Groups and
    mixtures are drawn, always the same, from the photos of leaf categories that have at least two.

    Args:
        tune: photos with their truth, of which no guarantee is tested.
        taxonomy: that of the logits.
        calibration: its temperatures; the limit has no part.
    """
    leaves = tune.truth.leaves[tune.groups]
    photos = np.flatnonzero(leaves >= 0)
    photos = photos[np.bincount(leaves[photos])[leaves[photos]] > 1] if len(photos) else photos
    if len(photos) < _MIN_PHOTOS:
        return DEFAULT_AGREEMENT_LIMIT
    rng = np.random.default_rng(0)
    honest = _Likely(tune, _draw_groups(rng, photos, leaves[photos]), taxonomy, calibration)
    mixed = _Likely(tune, _draw_mixtures(rng, photos, taxonomy.leaf_paths[leaves[photos], 0]), taxonomy, calibration)
    fitted = _LIMITS[0]
    for limit in _LIMITS:
        if honest.compute_lost_share(limit) > _MAX_HONEST_SHARE:
            break
        fitted = limit
        if mixed.compute_kept_share(limit) <= _MAX_MIXED_SHARE:
            break
    return fitted


class _Likely:
    """Which likely steps of drawn listings the limits contradict."""

    def __init__(
        self, tune: CalibrationListings, listings: list[Ints], taxonomy: Taxonomy, calibration: Calibration
    ) -> None:
        photos = np.concatenate(listings) if listings else np.empty(0, np.int64)
        groups = np.repeat(np.arange(len(listings)), [len(one) for one in listings])
        self._drawn = replace(
            tune,
            category_logits=tune.category_logits[photos],
            brand_logits=tune.brand_logits[photos],
            scope_scores=tune.scope_scores[photos],
            groups=groups,
        )
        self._num_listings, self._taxonomy, self._calibration = len(listings), taxonomy, calibration
        self._without = self._find(None)

    def compute_lost_share(self, limit: float) -> float:
        """Return the share of listings of which a likely step is contradicted."""
        if not self._num_listings:
            return 0.0
        return float((self._without & ~self._find(limit)).any(axis=1).mean())

    def compute_kept_share(self, limit: float) -> float:
        """Return the share of listings of which a likely step is not contradicted."""
        return float(self._find(limit).any(axis=1).mean()) if self._num_listings else 0.0

    def _find(self, limit: float | None) -> npt.NDArray[np.bool_]:
        """(N, D) whether each step is likely and may be filled."""
        if not self._num_listings:
            return np.zeros((0, self._taxonomy.max_depth), dtype=bool)
        paths = self._drawn.predict(self._taxonomy, replace(self._calibration, agreement_limit=limit)).paths
        fillable: npt.NDArray[np.bool_] = np.arange(paths.scores.shape[1]) < paths.num_fillable[:, None]
        return fillable & (paths.scores >= _LIKELY)


def _draw_groups(rng: np.random.Generator, photos: Ints, leaves: Ints) -> list[Ints]:
    """Two to five photos of one leaf each, of all leaves alike often."""
    by_leaf = [photos[leaves == leaf] for leaf in np.unique(leaves)]
    return [
        rng.permutation(by_leaf[i % len(by_leaf)])[: int(rng.integers(2, _MAX_PHOTOS_PER_GROUP + 1))]
        for i in range(_NUM_DRAWN)
    ]


def _draw_mixtures(rng: np.random.Generator, photos: Ints, roots: Ints) -> list[Ints]:
    """Two photos of different roots each; none where there is only one root."""
    pairs = rng.integers(0, len(photos), (4 * _NUM_DRAWN, 2))
    differ = pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]
    return list(photos[differ[:_NUM_DRAWN]])
