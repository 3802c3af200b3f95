"""The gateway processes behind one port: started, given their traffic split, replaced when they exit or freeze."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

import prometheus_client

from serving.config import ServeOptions
from serving.observability.metrics import MetricsFolder
from serving.processes.control import ControlTimeout, ControlUnavailable
from serving.rollout.traffic_split import TrafficSplit
from serving.supervisor.managed_process import ManagedProcess, RestartBackoff
from vision.errors import ListingVisionError

__all__ = ["GatewayPool"]

_log = logging.getLogger(__name__)

APPLY_TIMEOUT_S = 120.0
"""Longest time for a gateway process to load a release."""

OnUnhealthyReleases = Callable[[int, Sequence[str]], None]
"""Called with the pid of a gateway process and the labels of the releases that it finds unhealthy."""


class GatewayPool:
    """Keeps `options.workers` gateway processes running, all with the same traffic split."""

    def __init__(
        self,
        options: ServeOptions,
        metrics: MetricsFolder,
        *,
        restarts: prometheus_client.Counter,
        on_unhealthy_releases: OnUnhealthyReleases,
    ) -> None:
        """Args:
        options: options of each process, with the traffic split.
        metrics: folder to which the processes write their metrics.
        restarts: counts by `component`: `gateway`.
        on_unhealthy_releases: called every `health_interval_s` for each process.
        """
        self._options = options
        self._metrics = metrics
        self._restarts = restarts
        self._on_unhealthy_releases = on_unhealthy_releases
        self._processes: set[ManagedProcess] = set()
        self._num_starting = 0
        """Processes that are started and do not serve yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._backoff = RestartBackoff()
        self._stopping = False
        self._change_lock = asyncio.Lock()

    @property
    def options(self) -> ServeOptions:
        """Options of each process that is started from now on."""
        return self._options

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in list(self._processes)]  # read from other threads

    async def start(self) -> None:
        """Return once all processes serve.

        Raises:
            OSError: a process did not start; its log says why.
        """
        while self._num_missing > 0:
            await self._add_process()

    async def stop(self) -> None:
        """Stop each process after its calls in flight."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        stops = [process.stop() for process in list(self._processes)]
        await asyncio.gather(*stops, *self._tasks, return_exceptions=True)

    async def replace_all(self) -> bool:
        """Replace one process after another: the new one serves before the old one is stopped.

        Return False if a new one does not start; the processes that are not replaced yet keep running then.
        """
        async with self._change_lock:
            old_processes = set(self._processes)
            while (old_processes := old_processes & self._processes) and not self._stopping:
                try:
                    await self._add_process()
                except (OSError, TimeoutError, ListingVisionError) as error:
                    _log.error("gateway processes are not replaced: %s", error)
                    self._spawn(self._scale_up())  # a process may have exited that the new one was to replace
                    return False
                # If an old process has exited meanwhile, the new one has taken its place.
                old_processes &= self._processes
                if old_processes and self._num_missing < 0:
                    await min(old_processes, key=lambda old: old.pid).stop()
        _log.info("all %d gateway processes were replaced", self._options.workers)
        return True

    async def apply_traffic_split(self, traffic_split: TrafficSplit) -> None:
        """Have all processes use a traffic split, also those that are started later.

        Raises:
            ListingVisionError: a process does not; all use the one before.
        """
        async with self._change_lock:  # no process starts meanwhile with the one before
            before = self._options
            stable = next(release for release in traffic_split.releases if release.label == traffic_split.stable)
            self._options = replace(
                before, traffic_split=traffic_split, bundle=stable.bundle, model_name=stable.model_name
            )
            if refused := await self._send_to_all(traffic_split):
                self._options = before
                assert before.traffic_split is not None
                for process, error in (await self._send_to_all(before.traffic_split)).items():
                    _log.error("gateway process %d does not roll back and is stopped: %s", process.pid, error)
                    process.send_signal(signal.SIGTERM)  # its watch starts another one
                raise next(iter(refused.values()))

    async def _send_to_all(self, traffic_split: TrafficSplit) -> dict[ManagedProcess, BaseException]:
        """Return the processes that do not use the traffic split, and why."""
        processes = list(self._processes)
        results = await asyncio.gather(
            *(self._send_traffic_split(process, traffic_split) for process in processes), return_exceptions=True
        )
        return {process: error for process, error in zip(processes, results, strict=True) if error is not None}

    async def _send_traffic_split(self, process: ManagedProcess, traffic_split: TrafficSplit) -> None:
        try:
            await process.send_command(
                "apply_traffic_split", timeout_s=APPLY_TIMEOUT_S, traffic_split=traffic_split.to_dict()
            )
        except ControlTimeout:
            if not await process.has_exited():
                raise
        except ControlUnavailable:
            pass  # it exits, and another one starts with the new traffic split

    async def _add_process(self) -> None:
        self._num_starting += 1
        try:
            process = await self._start_process()
        finally:
            self._num_starting -= 1
        self._processes.add(process)
        self._spawn(self._watch(process))

    async def _start_process(self) -> ManagedProcess:
        options = self._options
        process = await ManagedProcess.start(
            "gateway process", "serving.supervisor.gateway_worker", options, self._metrics.build_environment()
        )
        try:
            while options.traffic_split != self._options.traffic_split:  # it has changed meanwhile
                options = self._options
                assert options.traffic_split is not None
                await self._send_traffic_split(process, options.traffic_split)
        except BaseException:
            await process.stop()
            raise
        return process

    async def _watch(self, process: ManagedProcess) -> None:
        status = await process.watch(
            "list_unhealthy", lambda unhealthy: self._on_unhealthy_releases(process.pid, unhealthy)
        )
        self._processes.discard(process)
        self._metrics.mark_process_dead(process.pid)
        if self._stopping or process.is_stopping:
            return
        _log.error("gateway process %d exited with status %s", process.pid, status)
        self._restarts.labels("gateway").inc()
        await self._scale_up()

    async def _scale_up(self) -> None:
        """Start processes until as many run or start as are wanted."""
        while self._num_missing > 0:
            delay_s = self._backoff.record_exit()
            _log.info("another gateway process is started in %g s", delay_s)
            await asyncio.sleep(delay_s)
            if self._num_missing <= 0:
                return
            try:
                await self._add_process()
            except (OSError, TimeoutError, ListingVisionError) as error:
                _log.error("no new gateway process: %s", error)
            # Whatever failed, the next attempt may succeed; giving up would leave the pool too small for good.
            except Exception:
                _log.exception("no new gateway process")

    @property
    def _num_missing(self) -> int:
        num_active = sum(not process.is_stopping for process in self._processes)
        return 0 if self._stopping else self._options.workers - num_active - self._num_starting

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
