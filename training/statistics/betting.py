"""Evidence for and against an error share of at most alpha, valid after every outcome (testing by betting).

A bet is fixed before the outcome that it is on. If the share is above alpha, no system of bets multiplies its stake by
1 / delta at any time with probability more than delta (Ville's inequality; Waudby-Smith & Ramdas, JRSS B 2024).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["compute_certifying_wealth", "compute_withdrawing_wealth"]

_CERTIFYING = np.linspace(0.05, 0.95, 10)
"""Bets as shares of the largest, 1 / (1 - alpha). Share f is best for an error share of (1 - f) alpha."""
_WITHDRAWING = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
"""Bets as shares of the largest, 1 / alpha. Share f is best for an error share of alpha + f (1 - alpha)."""

_MAX_LOG_WEALTH = 50.0
"""Limit of the stakes that are kept: far more than any delta asks for, and a number that JSON holds."""

Floats = npt.NDArray[np.float64]


def compute_certifying_wealth(errors: npt.ArrayLike, *, alpha: float, before: tuple[int, int] = (0, 0)) -> Floats:
    """Return the log of the wealth after each outcome, prod(1 + b (alpha - e)) on average over the bets b.

    At log(1 / delta) the error share is at most `alpha`, except with probability `delta`, at whichever outcome it is
    reached.

    Args:
        errors: (N,) 1 for an error and 0 for none, in the order of the listings.
        alpha: error share.
        before: numbers of outcomes and of errors among them that came earlier.

    Returns:
        (N,).
    """
    bets, (num, num_errors) = _CERTIFYING / (1 - alpha), before
    earlier = (num - num_errors) * np.log1p(alpha * bets) + num_errors * np.log1p((alpha - 1) * bets)
    growth = np.log1p((alpha - np.asarray(errors, np.float64))[:, None] * bets)
    return _average(earlier + np.cumsum(growth, axis=0))


def compute_withdrawing_wealth(
    errors: npt.ArrayLike, *, alpha: float, num_before: int = 0, stakes: Sequence[float] = ()
) -> tuple[Floats, tuple[float, ...]]:
    """Return the log of the wealth after each outcome of the opposite bets, prod(1 + b (e - alpha)), and the stakes.

    At log(1 / delta) the error share exceeds `alpha`, except with probability `delta`. A share 1 / (s (s + 1)) of the
    wealth is not bet before outcome s: if all were bet from the first outcome on, a long time without errors would
    leave nothing of it, and a change for the worse would be seen late.

    Args:
        errors: (N,) as of `compute_certifying_wealth`.
        alpha: error share.
        num_before: outcomes that came earlier.
        stakes: what was returned for these; empty: there were none.

    Returns:
        (N,) and one stake a bet: what the bets have made of the shares that are bet already.
    """
    bets = _WITHDRAWING / alpha
    growth = np.log1p((np.asarray(errors, np.float64) - alpha)[:, None] * bets)
    total = np.cumsum(growth, axis=0)
    start = num_before + np.arange(1, len(total) + 1, dtype=np.float64)
    with np.errstate(divide="ignore"):  # the log of no stake
        earlier = np.log(np.asarray(stakes or [0.0] * len(bets)))
    begun = np.vstack([earlier, growth - total - np.log(start * (start + 1))[:, None]])
    wealth = np.vstack([earlier, total + np.logaddexp.accumulate(begun, axis=0)[1:]])
    final = np.exp(np.minimum(wealth[-1], _MAX_LOG_WEALTH))
    return np.logaddexp(_average(wealth[1:]), -np.log(start + 1)), tuple(final.tolist())


def _average(logs: Floats) -> Floats:
    average: Floats = np.logaddexp.reduce(logs, axis=1) - np.log(logs.shape[1])
    return average
