"""Golden photos as a health check: a model is healthy if it computes what the exported model computed."""

import asyncio
import contextlib

from serving.inference.engine import AsyncEngine
from vision.bundle import Bundle
from vision.engine import check_golden
from vision.errors import EngineBusy, EngineUnavailable

__all__ = [
    "FIRST_GOLDEN_PHOTO",
    "GOLDEN_TIMEOUT_S",
    "RECHECK_INTERVAL_S",
    "check_golden_photos",
    "wait_for_golden_photos",
]

FIRST_GOLDEN_PHOTO = slice(0, 1)
"""The golden photo of a periodic check, which should cost little."""
GOLDEN_TIMEOUT_S = 5.0
"""A model that takes longer for one photo has stopped. The worst case of a working model is 4.5 s: every instance at
the slowest listing that it may decode, and one more such photo each (`vision.decoding.fork_client`)."""
RECHECK_INTERVAL_S = 0.25
"""Between checks while they fail: callers are refused until one succeeds."""


async def check_golden_photos(
    engine: AsyncEngine, bundle: Bundle, *, which: slice = slice(None), timeout_s: float = 60.0
) -> None:
    """Compare the engine's logits of the bundle's golden photos, or of some, with those of the exported model.

    Raises:
        EngineError: they differ, or there are none in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            logits = await engine.infer_golden(bundle.golden.photos_nhwc[which])
    except TimeoutError:
        raise EngineUnavailable(f"the golden photos were not answered within {timeout_s:g} s") from None
    check_golden(bundle, logits, which=which)


async def wait_for_golden_photos(engine: AsyncEngine, bundle: Bundle, *, timeout_s: float = 60.0) -> None:
    """Return once the golden photos are answered correctly.

    Raises:
        EngineBroken: they are answered wrongly.
        EngineUnavailable: not in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(EngineUnavailable, EngineBusy):
                    return await check_golden_photos(engine, bundle)
                await asyncio.sleep(RECHECK_INTERVAL_S)
    except TimeoutError:
        raise EngineUnavailable(f"the golden photos were not answered within {timeout_s:g} s") from None
