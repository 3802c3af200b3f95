import asyncio

import pytest

from serving.inference.health import FIRST_GOLDEN_PHOTO, check_golden_photos, wait_for_golden_photos
from serving.inference.in_process import InProcessEngine
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable


class FailingEngine:
    """Raises the given errors one after another, then computes as the bundle does; None: it never returns."""

    def __init__(self, bundle, *errors) -> None:
        self._engine, self.errors = InProcessEngine(bundle), list(errors)

    async def infer_golden(self, photos_nhwc):
        if not self.errors:
            return await self._engine.infer_golden(photos_nhwc)
        error = self.errors.pop(0)
        if error is None:
            await asyncio.Event().wait()
        raise error


def test_a_model_that_computes_what_was_exported_is_healthy(bundle):
    async def check():
        engine = InProcessEngine(bundle)
        await check_golden_photos(engine, bundle)
        await check_golden_photos(engine, bundle, which=FIRST_GOLDEN_PHOTO)

    asyncio.run(check())


def test_another_model_is_broken(bundle, other_bundle):
    async def check(wait):
        await wait(InProcessEngine(other_bundle), bundle)

    for wait in (check_golden_photos, wait_for_golden_photos):
        with pytest.raises(EngineBroken):
            asyncio.run(check(wait))


def test_a_model_that_does_not_answer_in_time_is_unavailable(bundle):
    with pytest.raises(EngineUnavailable, match=r"not answered within 0\.05 s"):
        asyncio.run(check_golden_photos(FailingEngine(bundle, None), bundle, timeout_s=0.05))
    with pytest.raises(EngineUnavailable, match=r"not answered within 0\.05 s"):
        asyncio.run(wait_for_golden_photos(FailingEngine(bundle, None), bundle, timeout_s=0.05))


def test_a_model_that_is_loading_or_busy_is_waited_for(bundle):
    engine = FailingEngine(bundle, EngineUnavailable("loading"), EngineBusy("busy"))
    asyncio.run(wait_for_golden_photos(engine, bundle))
    assert not engine.errors


def test_a_model_that_rejects_golden_photos_is_not_waited_for(bundle):
    engine = FailingEngine(bundle, EngineBroken("wrong shape"))
    with pytest.raises(EngineBroken, match="wrong shape"):
        asyncio.run(wait_for_golden_photos(engine, bundle))
