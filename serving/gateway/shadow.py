"""Listings that another release answers too, once their callers have their answers; those are recorded and no more."""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.api.status import Refusal
from serving.observability.metrics import SHADOWS
from serving.observability.stage_timer import unobserved
from serving.protocol import listing_vision_pb2 as pb
from serving.rollout.release import ServedRelease

if TYPE_CHECKING:
    from serving.outcomes.writer import Recorder

__all__ = ["Shadows"]

_log = logging.getLogger(__name__)

MAX_WAITING = 16
"""Listings of a gateway process."""
MAX_WAITING_BYTES = 32 << 20
"""Of their encoded photos."""
LOOK_AGAIN_S = 0.02
"""Whether there is time to spare by now."""
TIMEOUT_S = 10.0

Answer = Callable[[ServedRelease, str, list[bytes]], Awaitable[pb.ClassifyListingResponse]]
"""What a release answers for the photos of a listing. Raises Refusal."""


@dataclass(frozen=True)
class _Waiting:
    release: ServedRelease
    contents: list[bytes]
    answered: pb.ClassifyListingResponse


class Shadows:
    """They take what nobody else wants: one listing at a time, begun only while callers leave time to spare.

    What comes while too many wait is dropped, so that under load shadows are what is given up first.
    """

    def __init__(self, answer: Answer, *, has_time: Callable[[], bool], recorder: "Recorder | None") -> None:
        """Args:
        answer: asks a release.
        has_time: whether the gateway has nothing better to do.
        recorder: of the answers; None: they are only counted.
        """
        self._answer = answer
        self._has_time = has_time
        self._recorder = recorder
        self._waiting: deque[_Waiting] = deque()
        self._num_bytes = 0
        self._working: asyncio.Task[None] | None = None

    def offer(self, release: ServedRelease, contents: Sequence[bytes], answered: pb.ClassifyListingResponse) -> None:
        """Take a listing that was answered, or drop it.

        Args:
            release: the shadow.
            contents: its encoded photos.
            answered: what its caller got.
        """
        num_bytes = sum(map(len, contents))
        full = len(self._waiting) >= MAX_WAITING or self._num_bytes + num_bytes > MAX_WAITING_BYTES
        if full or release.breaker.is_open:
            _count(release, "dropped" if full else "failed")
            return
        self._num_bytes += num_bytes
        self._waiting.append(_Waiting(release, list(contents), answered))
        if self._working is None or self._working.done():
            # In a context of its own: it is no part of the call's trace, nor of its caller's account.
            self._working = asyncio.get_running_loop().create_task(self._work(), context=contextvars.Context())

    async def close(self) -> None:
        """What still waits is dropped."""
        if self._working:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        for waiting in self._waiting:
            _count(waiting.release, "dropped")
        self._waiting.clear()

    async def _work(self) -> None:
        with unobserved():
            while self._waiting:
                # The answer is on its way first.
                await asyncio.sleep(LOOK_AGAIN_S)
                if not self._has_time():
                    continue
                following = self._waiting.popleft()
                self._num_bytes -= sum(map(len, following.contents))
                if following.release.is_closed:  # it is unloaded meanwhile
                    _count(following.release, "dropped")
                else:
                    await self._shadow(following)

    async def _shadow(self, waiting: _Waiting) -> None:
        with waiting.release.held() as release:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    found = await self._answer(release, waiting.answered.listing_id, waiting.contents)
            except (Refusal, TimeoutError) as error:
                _log.debug("the shadow %s gave no answer: %s", release.label, error)
                _count(release, "failed")
                return
            except asyncio.CancelledError:  # the gateway stops
                _count(release, "dropped")
                raise
            # Whatever it was, it is nobody's answer; the next listing goes on.
            except Exception:
                _log.exception("the shadow %s failed", release.label)
                _count(release, "failed")
                return
        _count(release, "same" if _said(found) == _said(waiting.answered) else "other")
        if self._recorder:
            self._recorder.record_shadow(found, waiting.answered)


def _count(release: ServedRelease, result: str) -> None:
    SHADOWS.labels(result, release.label).inc()


def _said(answer: pb.ClassifyListingResponse) -> tuple[object, ...]:
    """What a form would make of it."""
    brand = answer.brand
    path = [(step.category_id, step.outcome) for step in answer.category_path]
    return path, brand.kind, brand.brand_id, brand.outcome
