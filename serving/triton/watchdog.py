"""Starts a local Triton, checks it with golden photos, and reloads its models or restarts it when they fail."""

import asyncio
import contextlib
import logging
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Coroutine
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
from serving.triton.model_processes import RESTART_BACKOFF_S, ModelProcesses, RecoveryBackoff
from serving.triton.process import LocalTriton
from vision.bundle import Bundle
from vision.errors import EngineBusy, EngineError, EngineUnavailable

__all__ = ["TritonWatchdog"]

_log = logging.getLogger(__name__)

RELOAD_THRESHOLD = 2
"""Failed golden-photo checks in a row after which the model is reloaded in new processes …"""
RESTART_THRESHOLD = 4
"""… and after which Triton is restarted."""
RELOAD_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0
METRICS_TIMEOUT_S = 2.0
# Not through the proxy of http_proxy, which does not know this machine's loopback.
_open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
KILL_REPLACED_AFTER_S = 15.0
"""Longer than any call to Triton takes."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    bundle: Bundle
    engine: TritonEngine


class TritonWatchdog:
    """Recovers a Triton that has exited or fails the golden photos: it reloads a model, or restarts Triton.

    The golden photos are those of `main_model`; the processes of all models are watched.
    """

    def __init__(
        self,
        triton: LocalTriton,
        bundle: Bundle,
        *,
        health_interval_s: float,
        restarts: prometheus_client.Counter,
        degraded: prometheus_client.Gauge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        triton: not started yet.
        bundle: of its first model.
        health_interval_s: between two checks of the processes, and on average between two golden photos.
        restarts: counter by `component`, `triton` or `model`.
        degraded: 1 while Triton fails the golden photos or a model lacks processes.
        clock: in seconds.
        """
        self._triton = triton
        self._health_interval_s = health_interval_s
        self._restarts = restarts
        self.main_model = triton.models[0]
        """Triton's name of the model of the stable release."""
        self._models = {self.main_model: self._create_model(self.main_model, bundle)}
        self._degraded = degraded
        self._processes = {self.main_model: ModelProcesses()}
        """By model; if one of them ends, the model is reloaded."""
        self._restart_backoff = RecoveryBackoff(RESTART_BACKOFF_S)
        self._clock = clock
        self._next_golden_photos_s = 0.0
        self._num_failures = 0
        self._problems: list[str] = []
        self._logged_error = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return self._triton.address

    @property
    def problems(self) -> list[str]:
        """What the last check found, a sentence each; empty if all processes run and answer."""
        return list(self._problems)

    def fetch_metrics(self) -> bytes:
        """Triton's metrics in Prometheus' text format; empty if it does not respond. Blocks."""
        try:
            with _open_directly(self._triton.metrics_url, timeout=METRICS_TIMEOUT_S) as response:
                text: bytes = response.read()
                return text
        except OSError as error:
            _log.debug("Triton's metrics: %s", error)
            return b""

    async def start(self) -> None:
        """Start Triton and return once it answers the golden photos.

        Raises:
            EngineBroken: it answers them wrongly.
            EngineUnavailable: it did not start.
        """
        self._triton.start()
        await asyncio.to_thread(self._triton.wait_until_listening)
        await self.wait_until_healthy(self.main_model)
        self._record_processes(self.main_model)
        _log.info("Triton (pid %s) answers at %s", self._triton.pid, self._triton.address)

    def watch(self) -> None:
        """Start watching, in the running event loop."""
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
            EngineError: it cannot be loaded, or fails its golden photos; it has been removed.
        """
        self._models[name] = self._create_model(name, bundle)
        self._processes[name] = ModelProcesses()
        try:
            # One instance after another: all at once would take every core from the models that serve.
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
        # Before its processes end, so that the watchdog does not reload it.
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
        while True:
            await asyncio.sleep(RECHECK_INTERVAL_S if self._num_failures else self._health_interval_s)
            try:
                self._report(await self._check())
            # The watchdog must never end, whatever the error.
            except Exception:
                _log.exception("the check of Triton failed")

    async def _check(self) -> list[str]:
        """Check and recover what fails; return what was found."""
        # A golden photo seldom reaches a model process that has died; each call to it takes a second.
        incomplete = [name for name in self._models if self._triton.is_running() and not self._is_complete(name)]
        problems = [f"{name} lacks processes in Triton" for name in incomplete]
        if problems:
            self._report(problems)
        for name in incomplete:
            if name in self._models:
                await self._reload(name, "one of its processes has exited")
        if not self._must_check_golden_photos():
            return problems
        is_healthy = await self._is_healthy()
        self._num_failures = 0 if is_healthy else self._num_failures + 1
        if is_healthy:
            if not self._processes[self.main_model].is_known:  # after a restart that took too long
                for name in self._models:
                    self._record_processes(name)
            return problems
        if not self._triton.is_running():
            await self._restart("it has exited")
        elif self._num_failures == RELOAD_THRESHOLD:
            await self._reload(self.main_model, "it fails the golden photos")
        elif self._num_failures >= RESTART_THRESHOLD:
            await self._restart("it fails the golden photos")
        return [*problems, "Triton fails the golden photos"]

    def _report(self, problems: list[str]) -> None:
        self._problems = problems
        self._degraded.set(bool(problems))

    def _is_complete(self, name: str) -> bool:
        """Return whether a model has all its processes; those that are not needed are killed some time later."""
        state, living = self._processes[name], self._triton.list_model_pids(name)
        if to_end := state.observe(living):
            self._spawn(self._kill_later(to_end))
        return not state.is_known or state.is_complete(living)

    def _must_check_golden_photos(self) -> bool:
        # One a second for each instance would take a noticeable part of a CPU from the calls. The gateways send one a
        # second themselves, all together; these are to reach every instance.
        is_expected_healthy = not self._num_failures and self._triton.is_running()
        is_settled = self._processes[self.main_model].is_known
        return not (is_expected_healthy and is_settled and self._clock() < self._next_golden_photos_s)

    async def _is_healthy(self) -> bool:
        """Return whether the main model answers the golden photo once per instance."""
        self._next_golden_photos_s = self._clock() + self._health_interval_s * self._triton.options.num_instances
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
        # The same line at every check would bury the others.
        if wrong and str(wrong[0]) != self._logged_error:
            _log.warning("Triton is unhealthy: %s", wrong[0])
        self._logged_error = str(wrong[0]) if wrong else ""
        return not wrong

    async def _reload(self, name: str, reason: str) -> None:
        state, before = self._processes[name], self._triton.list_model_pids(name)
        if not state.may_reload(before):
            return
        _log.error("reloading %s in Triton: %s", name, reason)
        self._restarts.labels("model").inc()
        # Before the load, whose end may not be seen: under load it takes longer than any time limit.
        state.begin_reload(before)
        self._triton.touch_model(name)
        try:
            await self._models[name].engine.load(timeout_s=RELOAD_TIMEOUT_S)
        except EngineUnavailable as error:
            _log.warning("%s; the next checks look for its new processes", error)
            return
        if to_end := state.observe(self._triton.list_model_pids(name)):
            self._spawn(self._kill_later(to_end))
        _log.info("Triton has reloaded %s", name)

    def _record_processes(self, name: str) -> None:
        self._processes[name].record(self._triton.list_model_pids(name))

    async def _kill_later(self, pids: frozenset[int]) -> None:
        """Kill processes that a reload has replaced: Triton waits for one that has died, and never ends the others."""
        await asyncio.sleep(KILL_REPLACED_AFTER_S)
        for pid in pids & self._triton.list_all_model_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _restart(self, reason: str) -> None:
        if not self._restart_backoff.is_due():
            return
        _log.error("restarting Triton: %s", reason)
        self._restart_backoff.record_attempt()
        self._restarts.labels("triton").inc()
        self._num_failures = 0
        self._processes = {name: ModelProcesses() for name in self._models}
        await asyncio.to_thread(self._triton.restart)
        with contextlib.suppress(EngineUnavailable):  # then the next checks fail, and it is restarted again
            await asyncio.to_thread(self._triton.wait_until_listening)
            await self.wait_until_healthy(self.main_model)
            for name in self._models:
                self._record_processes(name)
            _log.info("Triton (pid %s) answers at %s", self._triton.pid, self._triton.address)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
