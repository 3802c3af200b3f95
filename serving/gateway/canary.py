"""Choose the release for a listing: the canary for its share of the listings, else the stable release.

Errors and timeouts of the canary fall back to the stable release, so that no caller sees them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serving.api.status import Refusal
from serving.gateway.admission import Admission
from serving.gateway.deadline import deadline_refusal
from serving.gateway.inference import check_breaker
from serving.observability import metrics
from serving.rollout.release import ServedRelease

__all__ = ["CanaryFallback"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

DEADLINE_SHARE = 0.4
"""Share of a call's time that the canary may take; the rest is left for the stable release."""
FAILURE_MIN_TIMEOUT_S = 0.5
"""A timeout counts as the canary's failure only if it had at least this long …"""
FAILURE_MIN_WAIT_MULTIPLE = 2.0
"""… and at least this multiple of the expected wait: else the machine is busy."""
_FALLBACK_REASONS = ("TOO_BUSY", "MODEL_UNAVAILABLE", "MODEL_BROKEN", "DEADLINE_TOO_SHORT")
"""Reasons that another release may not share; any other refusal is the request's fault."""


class CanaryFallback:
    """Runs a canary within its share of a call's time."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def try_canary(
        self, canary: ServedRelease, classify: Callable[[ServedRelease], Awaitable[_T]], *, time_s: float
    ) -> _T | None:
        """Return the canary's result; None if it failed or took too long.

        Args:
            canary: the release to try.
            classify: what to run with it.
            time_s: that the call has left.

        Raises:
            Refusal: the request itself is at fault, whatever the release.
        """
        time_s *= DEADLINE_SHARE
        try:
            check_breaker(canary)
            if self._expected_wait_exceeds(time_s):
                raise deadline_refusal(time_s)
            async with asyncio.timeout(time_s):
                return await classify(canary)
        except Refusal as refusal:
            if refusal.reason not in _FALLBACK_REASONS:
                raise
            reason = refusal.reason
        except TimeoutError:
            is_slow = not self._expected_wait_exceeds(time_s / FAILURE_MIN_WAIT_MULTIPLE)
            if time_s >= FAILURE_MIN_TIMEOUT_S and is_slow:
                canary.breaker.record_failure()
            reason = "DEADLINE_TOO_SHORT"
        # A bug of the canary's bundle must not fail the caller's request.
        except Exception:
            _log.exception("the canary %s failed", canary.label)
            canary.breaker.record_failure()
            reason = "INTERNAL"
        metrics.CANARY_FALLBACKS.labels(reason).inc()
        return None

    def _expected_wait_exceeds(self, time_s: float) -> bool:
        return not self._admission.is_idle() and self._admission.estimate_wait_s(0) > time_s
