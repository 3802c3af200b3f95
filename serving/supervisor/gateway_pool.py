"""The gateway processes behind one port: started, told their routes, and replaced when they die or fall silent."""

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import prometheus_client

from serving.config import ServeOptions, process_control_path
from serving.observability.metrics import MetricsFolder
from serving.processes.control import ControlTimeout, ControlUnavailable, monitor_heartbeat, send_command
from serving.rollout.traffic_split import TrafficSplit
from serving.supervisor.gateway_worker import READY
from vision.errors import ListingVisionError

__all__ = ["GatewayPool"]

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
APPLY_TIMEOUT_S = 120.0
"""For a gateway process to bring up a release."""
KILL_MARGIN_S = 15.0
"""Beyond drain and grace, before a gateway process that was asked to end is killed."""
EXIT_WAIT_S = 2.0
"""Between a process' last word and its end."""
RESTART_BACKOFF_S = (0.0, 0.5, 2.0, 5.0)
"""Before a gateway process that has died is started again, by how many have died lately; the last one for all more."""
RECENT_EXITS_WINDOW_S = 60.0

OnUnhealthyReleases = Callable[[int, Sequence[str]], None]
"""Told, by a process' pid, which releases it finds unwell."""


@dataclass(eq=False)
class _Process:
    process: asyncio.subprocess.Process
    stopping: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def wait_for_exit(self) -> bool:
        """Whether it has died, or is dying."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_WAIT_S):
                await self.process.wait()
        return self.process.returncode is not None


class GatewayPool:
    """As many as are wanted, all by the same routes."""

    def __init__(
        self,
        options: ServeOptions,
        metrics: MetricsFolder,
        *,
        restarts: prometheus_client.Counter,
        on_unhealthy_releases: OnUnhealthyReleases,
    ) -> None:
        """Args:
        options: of each process, with its routes.
        metrics: to which they write theirs.
        restarts: counts by `component`: `gateway`.
        on_unhealthy_releases: called every `health_interval_s` of each process.
        """
        self._options = options
        self._metrics = metrics
        self._restarts = restarts
        self._on_unhealthy_releases = on_unhealthy_releases
        self._processes: set[_Process] = set()
        self._num_starting = 0
        """That are started and do not serve yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._exits_s: list[float] = []
        self._stopping = False
        self._change_lock = asyncio.Lock()

    @property
    def options(self) -> ServeOptions:
        """Of each that comes."""
        return self._options

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in list(self._processes)]  # asked from other threads

    async def start(self) -> None:
        """Return once all of them serve.

        Raises:
            OSError: one did not come up; its log says why.
        """
        while self._num_missing > 0:
            await self._add_process()

    async def stop(self) -> None:
        """Each after its calls in flight."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        ends = [self._terminate(process) for process in list(self._processes)]
        await asyncio.gather(*ends, *self._tasks, return_exceptions=True)

    async def replace_all(self) -> bool:
        """One after another: the new one serves before the old one is asked to stop.

        Where a new one does not come up, those that have not been replaced go on, and it is False.
        """
        async with self._change_lock:
            old_processes = set(self._processes)
            while (old_processes := old_processes & self._processes) and not self._stopping:
                try:
                    await self._add_process()
                except (OSError, TimeoutError, ListingVisionError) as error:
                    _log.error("gateway processes are not replaced: %s", error)
                    self._spawn(self._scale_up())  # one may have died that counted on the new one
                    return False
                # Else one has died meanwhile, and the new one stands in for that.
                old_processes &= self._processes
                if old_processes and self._num_missing < 0:
                    await self._terminate(min(old_processes, key=lambda old: old.pid))
        _log.info("all %d gateway processes were replaced", self._options.workers)
        return True

    async def apply_traffic_split(self, traffic_split: TrafficSplit) -> None:
        """Have all of them route so, and those that come.

        Raises:
            ListingVisionError: one of them does not; all route as before.
        """
        async with self._change_lock:  # none comes up meanwhile by the old ones
            before = self._options
            stable = next(release for release in traffic_split.releases if release.label == traffic_split.stable)
            self._options = replace(
                before, traffic_split=traffic_split, bundle=stable.bundle, model_name=stable.model_name
            )
            if refused := await self._send_to_all(traffic_split):
                self._options = before
                assert before.traffic_split is not None
                for process, error in (await self._send_to_all(before.traffic_split)).items():
                    _log.error("gateway process %d does not go back, and is ended: %s", process.pid, error)
                    with contextlib.suppress(ProcessLookupError):
                        process.process.terminate()  # another comes up
                raise next(iter(refused.values()))

    async def _send_to_all(self, traffic_split: TrafficSplit) -> dict[_Process, BaseException]:
        """Those that do not route so, and why not."""
        processes = list(self._processes)
        found = await asyncio.gather(
            *(self._send_traffic_split(process, traffic_split) for process in processes), return_exceptions=True
        )
        return {process: error for process, error in zip(processes, found, strict=True) if error is not None}

    async def _send_traffic_split(self, process: _Process, traffic_split: TrafficSplit) -> None:
        try:
            await self._send_command(
                process, "apply_traffic_split", APPLY_TIMEOUT_S, traffic_split=traffic_split.to_dict()
            )
        except ControlTimeout:
            if not await process.wait_for_exit():
                raise
        except ControlUnavailable:
            pass  # it ends, and another comes up by the new routes

    async def _send_command(self, process: _Process, command: str, timeout_s: float, **arguments: object) -> object:
        path = process_control_path(self._metrics.path, process.pid)
        try:
            found: object = await asyncio.to_thread(send_command, path, command, timeout_s=timeout_s, **arguments)
        except ControlUnavailable as error:
            raise type(error)(f"gateway process {process.pid}: {error}") from error
        return found

    async def _add_process(self) -> None:
        self._num_starting += 1
        try:
            process = await self._start_process()
        finally:
            self._num_starting -= 1
        self._processes.add(process)
        self._spawn(self._watch_exit(process))
        self._spawn(self._monitor_heartbeat(process))

    async def _start_process(self) -> _Process:
        options = self._options
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = _Process(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "serving.supervisor.gateway_worker", options.to_json(), str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd=Path(__file__).resolve().parents[2],
                    env=self._metrics.build_environment(),
                    # A terminal's Ctrl-C reaches the supervisor alone, which then stops the others in order.
                    start_new_session=True,
                )
            )  # fmt: skip
            theirs.close()
            ours.setblocking(False)
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    answer = await asyncio.get_running_loop().sock_recv(ours, len(READY))
                if answer != READY:
                    raise OSError("a gateway process did not come up; see the log above")
                while options.traffic_split != self._options.traffic_split:  # they have changed meanwhile
                    options = self._options
                    assert options.traffic_split is not None
                    await self._send_traffic_split(process, options.traffic_split)
            except BaseException:
                await self._terminate(process)
                raise
        return process

    async def _watch_exit(self, process: _Process) -> None:
        status = await process.process.wait()
        self._processes.discard(process)
        self._metrics.mark_process_dead(process.pid)
        if self._stopping or process.stopping:
            return
        _log.error("gateway process %d ended with status %s", process.pid, status)
        self._restarts.labels("gateway").inc()
        await self._scale_up()

    async def _scale_up(self) -> None:
        """Have as many as are wanted, counting those that come."""
        while self._num_missing > 0:
            now_s = time.monotonic()
            self._exits_s = [s for s in self._exits_s if now_s - s < RECENT_EXITS_WINDOW_S]
            backoff_s = RESTART_BACKOFF_S[min(len(self._exits_s), len(RESTART_BACKOFF_S) - 1)]
            self._exits_s.append(now_s)
            _log.info("another gateway process is started in %g s", backoff_s)
            await asyncio.sleep(backoff_s)
            if self._num_missing <= 0:
                return
            try:
                await self._add_process()
            except (OSError, TimeoutError, ListingVisionError) as error:
                _log.error("no new gateway process: %s", error)
            # Whatever it was, a process fewer for ever would be worse.
            except Exception:
                _log.exception("no new gateway process")

    @property
    def _num_missing(self) -> int:
        return 0 if self._stopping else self._options.workers - len(self._active) - self._num_starting

    @property
    def _shutdown_timeout_s(self) -> float:
        """With a process that was asked to end."""
        return self._options.drain_s + self._options.grace_period_s + KILL_MARGIN_S

    @property
    def _active(self) -> list[_Process]:
        return [process for process in self._processes if not process.stopping]

    async def _monitor_heartbeat(self, process: _Process) -> None:
        is_frozen = await monitor_heartbeat(
            process_control_path(self._metrics.path, process.pid),
            "list_unhealthy",
            interval_s=self._options.health_interval_s,
            should_continue=lambda: process in self._processes,
            shutdown_timeout_s=self._shutdown_timeout_s,
            on_heartbeat=lambda unhealthy: self._on_unhealthy_releases(process.pid, unhealthy),
        )
        if is_frozen:
            _log.error("gateway process %d is silent, and is killed", process.pid)
            process.kill()

    async def _terminate(self, process: _Process) -> None:
        process.stopping = True
        with contextlib.suppress(ProcessLookupError):
            process.process.terminate()
        try:
            async with asyncio.timeout(self._shutdown_timeout_s):
                await process.process.wait()
        except TimeoutError:
            _log.warning("a gateway process did not end and is killed")
            process.kill()
            await process.process.wait()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
