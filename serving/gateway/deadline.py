"""Deadlines of calls: read from gRPC, checked before work begins, enforced while it runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from serving.api.status import Refusal

__all__ = ["check_deadline", "deadline_refusal", "enforce_deadline", "read_deadline_s", "seconds_until"]

DEFAULT_DEADLINE_S = 30.0
"""For callers that set none."""
MIN_DEADLINE_S = 0.005
"""A call with less time left is not started."""


def read_deadline_s(context: "grpc.aio.ServicerContext[Any, Any]") -> float:
    """Return the seconds that the caller's deadline leaves."""
    remaining_s = context.time_remaining()
    return DEFAULT_DEADLINE_S if remaining_s is None else remaining_s


def check_deadline(deadline_s: float) -> None:
    """Raises Refusal: too little time is left to start."""
    if deadline_s < MIN_DEADLINE_S:
        raise deadline_refusal(deadline_s)


@asynccontextmanager
async def enforce_deadline(deadline_s: float) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the body after `deadline_s`.

    Raises:
        Refusal: DEADLINE_TOO_SHORT.
    """
    try:
        async with asyncio.timeout(deadline_s) as timeout:
            yield timeout
    except TimeoutError:
        raise deadline_refusal(deadline_s) from None


def seconds_until(timeout: asyncio.Timeout) -> float:
    return (timeout.when() or 0.0) - asyncio.get_running_loop().time()


def deadline_refusal(deadline_s: float) -> Refusal:
    return Refusal(
        reason="DEADLINE_TOO_SHORT",
        message=f"no response within the {deadline_s * 1000:.0f} ms that the call had left; allow more time",
        metadata={"deadline_ms": round(deadline_s * 1000)},
    )
