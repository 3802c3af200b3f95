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
from serving.observability.stage_timer import suppress_metrics
from serving.protocol import listing_vision_pb2 as pb
from serving.rollout.release import ServedRelease

if TYPE_CHECKING:
    from serving.outcomes.writer import Recorder

__all__ = ["ShadowTraffic"]

_log = logging.getLogger(__name__)

MAX_QUEUED = 16
"""Listings of a gateway process."""
MAX_QUEUED_BYTES = 32 << 20
"""Of their encoded photos."""
POLL_INTERVAL_S = 0.02
"""Whether there is time to spare by now."""
TIMEOUT_S = 10.0

Classify = Callable[[ServedRelease, str, list[bytes]], Awaitable[pb.ClassifyListingResponse]]
"""What a release answers for the photos of a listing. Raises Refusal."""


@dataclass(frozen=True)
class _QueuedListing:
    release: ServedRelease
    contents: list[bytes]
    visible_response: pb.ClassifyListingResponse


class ShadowTraffic:
    """They take what nobody else wants: one listing at a time, begun only while callers leave time to spare.

    What comes while too many wait is dropped, so that under load shadows are what is given up first.
    """

    def __init__(self, classify: Classify, *, is_idle: Callable[[], bool], recorder: "Recorder | None") -> None:
        """Args:
        answer: asks a release.
        is_idle: whether the gateway has nothing better to do.
        recorder: of the answers; None: they are only counted.
        """
        self._classify = classify
        self._is_idle = is_idle
        self._recorder = recorder
        self._queue: deque[_QueuedListing] = deque()
        self._num_bytes = 0
        self._task: asyncio.Task[None] | None = None

    def submit(
        self, release: ServedRelease, contents: Sequence[bytes], visible_response: pb.ClassifyListingResponse
    ) -> None:
        """Take a listing that was answered, or drop it.

        Args:
            release: the shadow.
            contents: its encoded photos.
            answered: what its caller got.
        """
        num_bytes = sum(map(len, contents))
        full = len(self._queue) >= MAX_QUEUED or self._num_bytes + num_bytes > MAX_QUEUED_BYTES
        if full or release.breaker.is_open:
            _count_result(release, "dropped" if full else "failed")
            return
        self._num_bytes += num_bytes
        self._queue.append(_QueuedListing(release, list(contents), visible_response))
        if self._task is None or self._task.done():
            # In a context of its own: it is no part of the call's trace, nor of its caller's account.
            self._task = asyncio.get_running_loop().create_task(self._process_queue(), context=contextvars.Context())

    async def close(self) -> None:
        """What still waits is dropped."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for queued in self._queue:
            _count_result(queued.release, "dropped")
        self._queue.clear()

    async def _process_queue(self) -> None:
        with suppress_metrics():
            while self._queue:
                # The answer is on its way first.
                await asyncio.sleep(POLL_INTERVAL_S)
                if not self._is_idle():
                    continue
                queued = self._queue.popleft()
                self._num_bytes -= sum(map(len, queued.contents))
                if queued.release.is_closed:  # it is unloaded meanwhile
                    _count_result(queued.release, "dropped")
                else:
                    await self._classify_with_shadow(queued)

    async def _classify_with_shadow(self, queued: _QueuedListing) -> None:
        with queued.release.acquire() as release:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    response = await self._classify(release, queued.visible_response.listing_id, queued.contents)
            except (Refusal, TimeoutError) as error:
                _log.debug("the shadow %s gave no answer: %s", release.label, error)
                _count_result(release, "failed")
                return
            except asyncio.CancelledError:  # the gateway stops
                _count_result(release, "dropped")
                raise
            # Whatever it was, it is nobody's answer; the next listing goes on.
            except Exception:
                _log.exception("the shadow %s failed", release.label)
                _count_result(release, "failed")
                return
        _count_result(
            release, "same" if _visible_result(response) == _visible_result(queued.visible_response) else "different"
        )
        if self._recorder:
            self._recorder.record_shadow(response, queued.visible_response)


def _count_result(release: ServedRelease, result: str) -> None:
    SHADOWS.labels(result, release.label).inc()


def _visible_result(response: pb.ClassifyListingResponse) -> tuple[object, ...]:
    """What a form would make of it."""
    brand = response.brand
    path = [(step.category_id, step.outcome) for step in response.category_path]
    return path, brand.kind, brand.brand_id, brand.outcome
