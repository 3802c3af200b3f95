"""One release in a gateway process: its engine, its decoders and its health."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from serving.api import responses
from serving.decoding.prepared import PreparedPhoto
from serving.inference.engine import AsyncEngine
from serving.inference.health import (
    FIRST_GOLDEN_PHOTO,
    GOLDEN_TIMEOUT_S,
    RECHECK_INTERVAL_S,
    check_golden_photos,
    wait_for_golden_photos,
)
from serving.inference.shared_check import SharedCheck
from serving.observability.metrics import create_series
from serving.rollout.circuit_breaker import CircuitBreaker
from vision.bundle import UNKNOWN_BACKEND, Bundle
from vision.errors import EngineBusy, EngineError
from vision.images import EncodedPhoto

__all__ = ["Decoders", "OnReleaseChange", "ServedRelease"]

_log = logging.getLogger(__name__)

UNHEALTHY_THRESHOLD = 2
"""Failed golden-photo checks in a row; a single failure may be caused by load."""
_IDLE_POLL_INTERVAL_S = 0.05
_IDLE_TIMEOUT_S = 30.0
"""How long closing a release waits for calls in flight."""

OnReleaseChange = Callable[["ServedRelease"], None]
"""Called when the health of a release has changed, or its breaker has opened or closed."""


class Decoders(Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def prepare(self, data: EncodedPhoto) -> PreparedPhoto:
        """Decode one photo; never raises a PhotoError."""
        ...


class ServedRelease:
    """Monitored by golden photos while it is active in the traffic split."""

    def __init__(
        self,
        label: str,
        bundle: Bundle,
        engine: AsyncEngine,
        decoders: Decoders,
        *,
        health_interval_s: float,
        shared_check: SharedCheck | None,
        on_change: OnReleaseChange,
    ) -> None:
        """Args:
        health_interval_s: between two golden photos while they pass.
        shared_check: by which other processes of the same Triton learn whether they pass; closed with the release.
        """
        create_series(label)
        self.label = label
        self.engine = engine
        self.decoders = decoders
        self.breaker = CircuitBreaker(on_change=lambda: on_change(self))
        self.breaker.open()  # until its golden photos pass
        self.bundle = bundle.for_backend(UNKNOWN_BACKEND)
        """The bundle for the engine's backend: guarantees certified with another backend are void."""
        self._bundle = bundle
        self._health_interval_s = health_interval_s
        self._shared_check = shared_check
        self._check_age_s = 0.0
        """How long before the last check, in another process, its golden photo had passed."""
        self._on_change = on_change
        self._backend: str | None = UNKNOWN_BACKEND
        """None: the guarantees are suspended."""
        self._watch_task: asyncio.Task[None] | None = None
        self._stopped_tasks: set[asyncio.Task[None]] = set()
        """Checks that were stopped and have not ended yet."""
        self.num_in_flight = 0
        self._num_failures = 0
        self._checked_while_open = False
        self.is_healthy = False
        self.is_closed = False
        self.was_healthy = False
        """Whether it has ever been healthy; a release whose Triton still loads has not failed."""
        self.last_error: EngineError | None = None

    async def wait_until_healthy(self) -> None:
        """Return once all golden photos pass.

        Raises:
            EngineError: they fail, or do not pass in time.
        """
        await wait_for_golden_photos(self.engine, self._bundle)
        self._apply_backend(await self.engine.fetch_backend())
        self._num_failures = 0
        self._set_health(True)

    async def warm_up(self) -> None:
        """Prepare what the first call needs and check one golden photo, which sets `is_healthy`."""
        if not self.is_healthy:
            await self.check_health()
        await asyncio.to_thread(responses.warm_up, self._bundle)
        if self.engine.infer_encoded is None:
            await self.decoders.start()

    def watch(self) -> None:
        """Start to check the golden photos periodically."""
        if self._watch_task is None:
            self.breaker.has_opened = False
            self._watch_task = asyncio.create_task(self._watch_engine())

    def stop_watching(self) -> None:
        """Stop the periodic check; `is_healthy` keeps its value."""
        if self._watch_task:
            self._watch_task.cancel()
            self._stopped_tasks.add(self._watch_task)
            self._watch_task.add_done_callback(self._stopped_tasks.discard)
            self._watch_task = None

    @contextmanager
    def acquire(self) -> Iterator["ServedRelease"]:
        """Keep the release loaded during a call."""
        self.num_in_flight += 1
        try:
            yield self
        finally:
            self.num_in_flight -= 1

    async def close(self, *, when_idle: bool = False) -> None:
        """Close the engine; the decoders belong to the router."""
        self.stop_watching()
        if self._stopped_tasks:
            await asyncio.wait(self._stopped_tasks)  # one may hold the lock of the shared check
        if when_idle:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_TIMEOUT_S):
                    while self.num_in_flight:
                        await asyncio.sleep(_IDLE_POLL_INTERVAL_S)
        self.is_closed = True
        await self.engine.close()
        if self._shared_check:
            self._shared_check.close()

    async def check_health(self) -> None:
        """Check one golden photo and set `is_healthy`.

        A healthy release may take the result of another process, and asks only for the backend.
        """
        self._checked_while_open = self.breaker.is_open
        self._check_age_s = 0.0
        try:
            may_share = self.is_healthy and not self._num_failures and not self.breaker.is_open
            shared = self._shared_check if may_share else None
            if shared:
                self._check_age_s = await shared.run(self._check_golden_photo, max_age_s=self._health_interval_s)
            # Calls may have failed while it waited.
            if shared is None or self.breaker.is_open:
                await self._check_golden_photo()
            # A restarted or reloaded Triton may serve another model.
            self._apply_backend(await self.engine.fetch_backend())
        except EngineBusy:
            return  # it works, and has too much to do
        except EngineError as error:
            self.last_error = error
            self._num_failures += 1
            if self._num_failures >= UNHEALTHY_THRESHOLD:
                if self.is_healthy:
                    _log.error("%s is unhealthy: %s", self.label, error)
                self._set_health(False)
                self._suspend_guarantees()
        else:
            self._num_failures = 0
            if not self.is_healthy:
                _log.info("%s is healthy: golden photos get the exported model's logits", self.label)
            self._set_health(True)

    async def _check_golden_photo(self) -> None:
        await check_golden_photos(self.engine, self._bundle, which=FIRST_GOLDEN_PHOTO, timeout_s=GOLDEN_TIMEOUT_S)

    async def _watch_engine(self) -> None:
        while True:
            await self._wait_for_next_check()
            try:
                await self.check_health()
            # Without this, an unexpected error would end the check and freeze the last health.
            except Exception:
                _log.exception("the health check itself failed")
                self._set_health(False)

    async def _wait_for_next_check(self) -> None:
        # After one check an open breaker is no reason for an early one: a busy model leaves it open.
        if self._num_failures or not self.is_healthy or self._checked_while_open:
            await asyncio.sleep(RECHECK_INTERVAL_S)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._health_interval_s - self._check_age_s):
                await self.breaker.opened.wait()

    def _apply_backend(self, backend: str) -> None:
        """Void guarantees that were certified for another backend."""
        if backend == self._backend:
            return
        self._backend = backend
        self.bundle = self._bundle.for_backend(backend)
        if self.bundle is not self._bundle:
            certified = self._bundle.calibration.certifies.get("backend")
            _log.warning("nothing is prefilled: thresholds were certified with %s, not %s", certified, backend)

    def _suspend_guarantees(self) -> None:
        """Fill nothing until the golden photos pass: what answers next may be another model."""
        self._backend = None
        self.bundle = self._bundle.without_guarantees("the release fails its health check", code="RELEASE_UNHEALTHY")

    def _set_health(self, healthy: bool) -> None:
        self.is_healthy = healthy
        if healthy:
            self.was_healthy = True
            self.breaker.close()
            self._checked_while_open = False
        else:
            self.breaker.open()
        self._on_change(self)
