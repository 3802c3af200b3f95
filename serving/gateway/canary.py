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
from serving.rollout.router import Router

__all__ = ["CanaryRouting"]

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


class CanaryRouting:
    """Routes each listing to the canary or to the stable release."""

    def __init__(self, router: Router, admission: Admission) -> None:
        self._router = router
        self._admission = admission

    async def route(self, listing_id: str, classify: Callable[[ServedRelease], Awaitable[_T]], *, time_s: float) -> _T:
        """Return what `classify` returns for the release that serves a listing.

        Args:
            listing_id: decides whether the listing is in the canary's share.
            classify: called with the canary, if the listing is in its share, and with the stable release, if it is
                not or the canary failed.
            time_s: seconds that the call has left.

        Raises:
            Refusal: the stable release refused, or the request itself is at fault.
        """
        if canary := self._router.select_canary(listing_id):
            result = await self._try_canary(canary, classify, time_s=DEADLINE_SHARE * time_s)
            if result is not None:
                return result
        return await classify(self._router.stable)

    async def _try_canary(
        self, canary: ServedRelease, classify: Callable[[ServedRelease], Awaitable[_T]], *, time_s: float
    ) -> _T | None:
        """Return the canary's result; None if it failed or took too long."""
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
