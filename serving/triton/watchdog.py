"""A Triton of our own and the models in it: brought up, watched by golden photos, healed, let go of."""

import asyncio
import contextlib
import logging
import os
import signal
import urllib.request
from collections.abc import Coroutine
from dataclasses import dataclass

import prometheus_client

from serving.inference.health import (
    FIRST_GOLDEN_PHOTO,
    GOLDEN_TIMEOUT_S,
    RECHECK_INTERVAL_S,
    check_golden_photos,
    wait_for_golden_photos,
)
from serving.inference.triton import TritonEngine
from serving.triton.process import LocalTriton
from vision.bundle import Bundle
from vision.errors import EngineBusy, EngineError, EngineUnavailable

__all__ = ["TritonWatchdog"]

_log = logging.getLogger(__name__)

RELOAD_THRESHOLD = 2
"""Golden-photo checks in a row until a model has to be loaded anew: new model processes …"""
RESTART_THRESHOLD = 4
"""… and until Triton is stopped and started."""
RELOAD_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0
METRICS_TIMEOUT_S = 2.0
KILL_REPLACED_AFTER_S = 15.0
"""Longer than any call to Triton may take."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    bundle: Bundle
    engine: TritonEngine


class TritonWatchdog:
    """One that has died, or no longer answers the golden photos, is healed: a model is loaded anew, or all of it.

    Golden photos are asked of `main_model`; of all models the processes are watched.
    """

    def __init__(
        self, triton: LocalTriton, bundle: Bundle, *, health_interval_s: float, restarts: prometheus_client.Counter
    ) -> None:
        """Args:
        triton: not started yet.
        bundle: of the model that it serves to begin with.
        health_interval_s: between two golden-photo checks.
        restarts: counts by `component` was started again: `triton` or `model`.
        """
        self._triton = triton
        self._health_interval_s = health_interval_s
        self._restarts = restarts
        self.main_model = triton.models[0]
        """Triton's name of the model that callers are answered by."""
        self._models = {self.main_model: self._create_model(self.main_model, bundle)}
        self._processes: dict[str, frozenset[int]] = {}
        """That compute each model; one of them that ends is missed."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return self._triton.address

    def fetch_metrics(self) -> bytes:
        """What it tells Prometheus; nothing where it does not answer. Blocks."""
        try:
            with urllib.request.urlopen(self._triton.metrics_url, timeout=METRICS_TIMEOUT_S) as response:
                text: bytes = response.read()
                return text
        except OSError as error:
            _log.debug("Triton's metrics: %s", error)
            return b""

    async def start(self) -> None:
        """Return once the golden photos are answered.

        Raises:
            EngineBroken: they are answered wrongly.
            EngineUnavailable: it did not come up.
        """
        self._triton.start()
        await asyncio.to_thread(self._triton.wait_until_listening)
        await self.wait_until_healthy(self.main_model)
        self._record_processes(self.main_model)
        _log.info("Triton (pid %s) answers at %s", self._triton.pid, self._triton.address)

    def watch(self) -> None:
        """From now on."""
        self._spawn(self._run_watchdog())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in self._models.values():
            await model.engine.close()
        await asyncio.to_thread(self._triton.stop)

    async def add(self, name: str, bundle: Bundle) -> None:
        """Load a model beside those that are loaded.

        Raises:
            EngineError: it cannot be loaded, or does not answer its golden photos; it is gone again.
        """
        self._models[name] = self._create_model(name, bundle)
        try:
            # One instance after another: all at once they would take every core from those that answer.
            for num_instances in range(1, self._triton.options.num_instances + 1):
                await asyncio.to_thread(self._triton.add_model, bundle, name, num_instances=num_instances)
                await self._models[name].engine.load(timeout_s=LOAD_TIMEOUT_S)
            self._record_processes(name)
            await self.wait_until_healthy(name)
        except BaseException:
            await self.remove(name)
            raise

    async def remove(self, name: str) -> None:
        model = self._models.pop(name)
        # From here on nobody misses them.
        self._processes.pop(name, None)
        if name in self._triton.models:
            with contextlib.suppress(EngineUnavailable):
                await model.engine.unload(timeout_s=RELOAD_TIMEOUT_S)
            self._triton.remove_model(name)
        await model.engine.close()

    async def wait_until_healthy(self, name: str) -> None:
        """Return once a model's golden photos are answered. Raises EngineError."""
        await wait_for_golden_photos(self._models[name].engine, self._models[name].bundle)

    def _create_model(self, name: str, bundle: Bundle) -> _Model:
        return _Model(bundle=bundle, engine=TritonEngine(self._triton.address, model_name=name))

    async def _run_watchdog(self) -> None:
        num_failures = 0
        while True:
            await asyncio.sleep(RECHECK_INTERVAL_S if num_failures else self._health_interval_s)
            try:
                # A golden photo seldom meets a model process that has died: it holds each call for a second.
                for name in list(self._models):
                    expected = self._processes.get(name, frozenset())
                    if self._triton.is_running() and expected - self._triton.list_model_pids(name):
                        await self._reload(name, "one of its processes has died")
                num_failures = 0 if await self._is_healthy() else num_failures + 1
                if num_failures and not self._triton.is_running():
                    await self._restart("it has died")
                    num_failures = 0
                elif num_failures == RELOAD_THRESHOLD:
                    await self._reload(self.main_model, "it does not answer the golden photos")
                elif num_failures >= RESTART_THRESHOLD:
                    await self._restart("it does not answer the golden photos")
                    num_failures = 0
            # Whatever it was, a watch that ends would leave a dead model dead.
            except Exception:
                _log.exception("watching Triton failed")

    async def _is_healthy(self) -> bool:
        """Whether all instances of the model that callers are answered by answer."""
        main = self._models[self.main_model]
        checks = (
            check_golden_photos(main.engine, main.bundle, which=FIRST_GOLDEN_PHOTO, timeout_s=GOLDEN_TIMEOUT_S)
            for _ in range(self._triton.options.num_instances)
        )
        found = await asyncio.gather(*checks, return_exceptions=True)
        wrong = [error for error in found if error is not None and not isinstance(error, EngineBusy)]
        for error in wrong:
            if not isinstance(error, EngineError):
                raise error
        if wrong:
            _log.warning("Triton is not well: %s", wrong[0])
        return not wrong

    async def _reload(self, name: str, reason: str) -> None:
        _log.error("Triton loads the model anew: %s", reason)
        self._restarts.labels("model").inc()
        before = self._triton.list_model_pids(name)
        self._triton.touch_model(name)
        try:
            await self._models[name].engine.load(timeout_s=RELOAD_TIMEOUT_S)
        except EngineUnavailable as error:
            _log.warning("%s", error)
            return
        started = self._triton.list_model_pids(name) - before
        if started:
            self._processes[name] = started
            self._spawn(self._kill_replaced_processes(before))
            _log.info("Triton has loaded %s anew", name)
        else:
            _log.warning("Triton has started no new process for %s", name)
            self._record_processes(name)

    def _record_processes(self, name: str) -> None:
        self._processes[name] = self._triton.list_model_pids(name)

    async def _kill_replaced_processes(self, pids: frozenset[int]) -> None:
        """Those of a model that was replaced: where one has died, Triton waits for it and never ends the others."""
        await asyncio.sleep(KILL_REPLACED_AFTER_S)
        for pid in pids & self._triton.list_all_model_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _restart(self, reason: str) -> None:
        _log.error("Triton is started again: %s", reason)
        self._restarts.labels("triton").inc()
        self._processes.clear()
        await asyncio.to_thread(self._triton.restart)
        with contextlib.suppress(EngineUnavailable):  # then the next checks fail, and it is started once more
            await asyncio.to_thread(self._triton.wait_until_listening)
            await self.wait_until_healthy(self.main_model)
            for name in self._models:
                self._record_processes(name)
            _log.info("Triton (pid %s) answers at %s", self._triton.pid, self._triton.address)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
