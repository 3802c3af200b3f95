"""Listings that another release answers too, once their callers have their answers; those are recorded and no more."""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.responses import ResponseOptions
from serving.api.status import Refusal
from serving.observability.metrics import SHADOWS
from serving.observability.stage_timer import suppress_metrics
from serving.rollout.release import ServedRelease
from vision.images import EncodedPhoto

if TYPE_CHECKING:
    from serving.outcomes.writer import Recorder

__all__ = ["ShadowTraffic"]

_log = logging.getLogger(__name__)

MAX_QUEUED = 16
"""Queued listings of a gateway process."""
MAX_QUEUED_BYTES = 32 << 20
"""Encoded photos of all queued listings together."""
POLL_INTERVAL_S = 0.02
"""Between checks whether the gateway is idle."""
TIMEOUT_S = 10.0

Classify = Callable[[ServedRelease, list[EncodedPhoto], ResponseOptions], Awaitable[pb.ClassifyListingResponse]]
"""Classify a listing's photos with a release. Raises Refusal."""


@dataclass(frozen=True)
class _QueuedListing:
    release: ServedRelease
    contents: list[EncodedPhoto]
    options: ResponseOptions
    visible_response: pb.ClassifyListingResponse


class ShadowTraffic:
    """Classifies copies of listings with the shadow release, one at a time and only while the gateway is idle.

    A listing that arrives while the queue is full is dropped, so that load sheds shadow traffic first.
    """

    def __init__(self, classify: Classify, *, is_idle: Callable[[], bool], recorder: "Recorder | None") -> None:
        """Args:
        classify: classifies a listing with a release.
        is_idle: whether calls leave capacity unused.
        recorder: stores the shadow's responses; None: they are only counted.
        """
        self._classify = classify
        self._is_idle = is_idle
        self._recorder = recorder
        self._queue: deque[_QueuedListing] = deque()
        self._num_bytes = 0
        self._task: asyncio.Task[None] | None = None

    def submit(
        self,
        release: ServedRelease,
        contents: Sequence[EncodedPhoto],
        options: ResponseOptions,
        visible_response: pb.ClassifyListingResponse,
    ) -> None:
        """Queue a copy of a listing, or drop it.

        Args:
            release: the shadow.
            contents: the listing's encoded photos.
            options: the listing's id, and what the suggestion depends on, as of the caller's request.
            visible_response: the response that the caller got.
        """
        num_bytes = sum(map(len, contents))
        full = len(self._queue) >= MAX_QUEUED or self._num_bytes + num_bytes > MAX_QUEUED_BYTES
        if full or release.breaker.is_open:
            _count_result(release, "dropped" if full else "failed")
            return
        self._num_bytes += num_bytes
        self._queue.append(_QueuedListing(release, list(contents), options, visible_response))
        if not self.is_working:
            # A new context: the task belongs neither to the call's trace nor to its caller.
            self._task = asyncio.get_running_loop().create_task(self._process_queue(), context=contextvars.Context())

    @property
    def is_working(self) -> bool:
        """Whether a listing is queued or being classified."""
        return self._task is not None and not self._task.done()

    async def close(self) -> None:
        """Drop all queued listings."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for queued in self._queue:
            _count_result(queued.release, "dropped")
        self._queue.clear()

    async def _process_queue(self) -> None:
        with suppress_metrics():
            while self._queue:
                # The caller's response is sent first.
                await asyncio.sleep(POLL_INTERVAL_S)
                if not self._is_idle():
                    continue
                queued = self._queue.popleft()
                self._num_bytes -= sum(map(len, queued.contents))
                if queued.release.is_closed:  # it was unloaded meanwhile
                    _count_result(queued.release, "dropped")
                else:
                    await self._classify_with_shadow(queued)

    async def _classify_with_shadow(self, queued: _QueuedListing) -> None:
        with queued.release.acquire() as release:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    response = await self._classify(release, queued.contents, queued.options)
            except (Refusal, TimeoutError) as error:
                _log.debug("the shadow %s did not classify a listing: %s", release.label, error)
                _count_result(release, "failed")
                return
            except asyncio.CancelledError:  # the gateway stops
                _count_result(release, "dropped")
                raise
            # No caller waits for it; continue with the next listing.
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
    """Return the parts of a response that a form shows."""
    brand = response.brand
    path = [(step.category_id, step.action) for step in response.category_path]
    return path, brand.kind, brand.brand_id, brand.action
