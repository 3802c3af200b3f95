"""The scope score below which a photo is out of scope: from scores inside alone, or with scores of other things."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vision.errors import ListingVisionError

__all__ = ["SharpenedThreshold", "fit_scope_threshold", "sharpen_scope_threshold"]

_MAX_LOST_SHARE = 0.01
"""Share of listings of the taxonomy's products that may be taken as out of scope."""
_NUM_SPREADS = 3.0
"""How many standard deviations below the mean the threshold lies. Of a normal distribution 0.13 % are further away; the
tails of scores are a little longer. Chosen on val photos of Grocery Store and of drawn goods."""
_MAX_OUTSIDE_SHARE = 0.03
"""Share of photos of other things that may pass a sharpened threshold."""
_MAX_SHARPENED_LOST_SHARE = 0.03
"""Share of listings of the taxonomy's products that sharpening may cost."""

Floats = npt.NDArray[np.floating]


class SharpenedThreshold(NamedTuple):
    """A threshold that was moved up for photos of other things, and what it does."""

    threshold: float
    outside_share: float
    """Share of the photos of other things that pass."""
    lost_share: float
    """Share of the listings of the taxonomy's products that do not."""
    num_outside: int

    def describe(self) -> str:
        """Return both shares as a sentence, for the certificate."""
        return (
            f"of {self.num_outside} photos of other things {self.outside_share:.1%} pass as in scope, and of the tune "
            f"listings {self.lost_share:.1%} do not"
        )


def fit_scope_threshold(scores: Floats, held_out: Floats | None = None) -> float | None:
    """Return the scope score that at most one in a hundred listings of the taxonomy's products fall short of.

    Few listings do not show how long the tail of their scores is; photos held out of training do, though theirs may
    lie higher. So the threshold lies three standard deviations, of whichever varies more, below the mean of the
    listings; and no higher than the k-th smallest of their n scores, k = (n + 1) / 100 rounded down and at least 1, of
    which a new listing of their kind falls short with probability k / (n + 1).

    Args:
        scores: (n,) of listings that the model was not trained on; NaN where not known.
        held_out: (H,) of training photos that the scope score was not fitted to.

    Returns:
        None where no score is known: the model computes none.
    """
    known = np.sort(scores[np.isfinite(scores)].astype(np.float64))
    if known.size == 0:
        return None
    spread = max(float(np.std(part)) for part in (known, held_out) if part is not None and len(part))
    ordered = known[max(1, int(_MAX_LOST_SHARE * (known.size + 1))) - 1]
    return min(float(known.mean()) - _NUM_SPREADS * spread, float(ordered))


def sharpen_scope_threshold(threshold: float | None, inside: Floats, outside: Floats) -> SharpenedThreshold:
    """Move a threshold up until few photos of other things pass, as far as few listings inside are lost.

    Args:
        threshold: of `fit_scope_threshold`; the result is not lower.
        inside: (n,) scores of listings of the taxonomy's products; NaN where not known.
        outside: (m,) scores of photos of other things.

    Raises:
        ListingVisionError: there is no threshold, since the model computes no score.
    """
    if threshold is None:
        raise ListingVisionError(
            "the model computes no scope scores, so photos of other things can raise no threshold; `listing-vision "
            "export` its run again, or leave them out"
        )
    known = inside[np.isfinite(inside)]
    wanted = np.nextafter(np.quantile(outside, 1 - _MAX_OUTSIDE_SHARE, method="higher"), np.inf)
    affordable = np.quantile(known, _MAX_SHARPENED_LOST_SHARE, method="lower")
    moved = max(threshold, float(min(wanted, affordable)))
    return SharpenedThreshold(
        moved, float((outside >= moved).mean()), float((known < moved).mean()), num_outside=len(outside)
    )
