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

from serving.config import ServeOptions, local_control
from serving.observability.metrics import MetricsFolder
from serving.processes.control import NoAnswer, NoAnswerInTime, ask, listen
from serving.rollout.traffic_split import Routes
from serving.supervisor.gateway_worker import READY
from vision.errors import ListingVisionError

__all__ = ["GatewayProcesses"]

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
ROUTE_TIMEOUT_S = 120.0
"""For a gateway process to bring up a release."""
END_PATIENCE_S = 15.0
"""Beyond drain and grace, before a gateway process that was asked to end is killed."""
DYING_S = 2.0
"""Between a process' last word and its end."""
RESTART_PAUSES_S = (0.0, 0.5, 2.0, 5.0)
"""Before a gateway process that has died is started again, by how many have died lately; the last one for all more."""
LATELY_S = 60.0

HeardOf = Callable[[int, Sequence[str]], None]
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

    async def ends_by_itself(self) -> bool:
        """Whether it has died, or is dying."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DYING_S):
                await self.process.wait()
        return self.process.returncode is not None


class GatewayProcesses:
    """As many as are wanted, all by the same routes."""

    def __init__(
        self,
        options: ServeOptions,
        metrics: MetricsFolder,
        *,
        restarts: prometheus_client.Counter,
        unwell: HeardOf,
    ) -> None:
        """Args:
        options: of each process, with its routes.
        metrics: to which they write theirs.
        restarts: counts by `what`: `gateway`.
        unwell: told every `health_interval_s` of each process.
        """
        self._options = options
        self._metrics = metrics
        self._restarts = restarts
        self._heard = unwell
        self._processes: set[_Process] = set()
        self._num_coming = 0
        """That are started and do not serve yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaths_s: list[float] = []
        self._stopping = False
        self._changing = asyncio.Lock()

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
            await self._add()

    async def stop(self) -> None:
        """Each after its calls in flight."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        ends = [self._end(process) for process in list(self._processes)]
        await asyncio.gather(*ends, *self._tasks, return_exceptions=True)

    async def replace_all(self) -> bool:
        """One after another: the new one serves before the old one is asked to stop.

        Where a new one does not come up, those that have not been replaced go on, and it is False.
        """
        async with self._changing:
            olds = set(self._processes)
            while (olds := olds & self._processes) and not self._stopping:
                try:
                    await self._add()
                except (OSError, TimeoutError, ListingVisionError) as error:
                    _log.error("gateway processes are not replaced: %s", error)
                    self._spawn(self._refill())  # one may have died that counted on the new one
                    return False
                # Else one has died meanwhile, and the new one stands in for that.
                olds &= self._processes
                if olds and self._num_missing < 0:
                    await self._end(min(olds, key=lambda old: old.pid))
        _log.info("all %d gateway processes were replaced", self._options.workers)
        return True

    async def route(self, routes: Routes) -> None:
        """Have all of them route so, and those that come.

        Raises:
            ListingVisionError: one of them does not; all route as before.
        """
        async with self._changing:  # none comes up meanwhile by the old ones
            before = self._options
            stable = next(release for release in routes.releases if release.label == routes.stable)
            self._options = replace(before, routes=routes, bundle=stable.bundle, model_name=stable.model_name)
            if refused := await self._told(routes):
                self._options = before
                assert before.routes is not None
                for process, error in (await self._told(before.routes)).items():
                    _log.error("gateway process %d does not go back, and is ended: %s", process.pid, error)
                    with contextlib.suppress(ProcessLookupError):
                        process.process.terminate()  # another comes up
                raise next(iter(refused.values()))

    async def _told(self, routes: Routes) -> dict[_Process, BaseException]:
        """Those that do not route so, and why not."""
        asked = list(self._processes)
        found = await asyncio.gather(*(self._tell(process, routes) for process in asked), return_exceptions=True)
        return {process: error for process, error in zip(asked, found, strict=True) if error is not None}

    async def _tell(self, process: _Process, routes: Routes) -> None:
        try:
            await self._ask(process, "route", ROUTE_TIMEOUT_S, routes=routes.to_dict())
        except NoAnswerInTime:
            if not await process.ends_by_itself():
                raise
        except NoAnswer:
            pass  # it ends, and another comes up by the new routes

    async def _ask(self, process: _Process, command: str, timeout_s: float, **arguments: object) -> object:
        path = local_control(self._metrics.path, process.pid)
        try:
            found: object = await asyncio.to_thread(ask, path, command, answer_timeout_s=timeout_s, **arguments)
        except NoAnswer as error:
            raise type(error)(f"gateway process {process.pid}: {error}") from error
        return found

    async def _add(self) -> None:
        self._num_coming += 1
        try:
            process = await self._started()
        finally:
            self._num_coming -= 1
        self._processes.add(process)
        self._spawn(self._until_dead(process))
        self._spawn(self._listen(process))

    async def _started(self) -> _Process:
        options = self._options
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = _Process(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "serving.supervisor.gateway_worker", options.to_json(), str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd=Path(__file__).resolve().parents[2],
                    env=self._metrics.environment(),
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
                while options.routes != self._options.routes:  # they have changed meanwhile
                    options = self._options
                    assert options.routes is not None
                    await self._tell(process, options.routes)
            except BaseException:
                await self._end(process)
                raise
        return process

    async def _until_dead(self, process: _Process) -> None:
        status = await process.process.wait()
        self._processes.discard(process)
        self._metrics.forget(process.pid)
        if self._stopping or process.stopping:
            return
        _log.error("gateway process %d ended with status %s", process.pid, status)
        self._restarts.labels("gateway").inc()
        await self._refill()

    async def _refill(self) -> None:
        """Have as many as are wanted, counting those that come."""
        while self._num_missing > 0:
            now_s = time.monotonic()
            self._deaths_s = [s for s in self._deaths_s if now_s - s < LATELY_S]
            pause_s = RESTART_PAUSES_S[min(len(self._deaths_s), len(RESTART_PAUSES_S) - 1)]
            self._deaths_s.append(now_s)
            _log.info("another gateway process is started in %g s", pause_s)
            await asyncio.sleep(pause_s)
            if self._num_missing <= 0:
                return
            try:
                await self._add()
            except (OSError, TimeoutError, ListingVisionError) as error:
                _log.error("no new gateway process: %s", error)
            # Whatever it was, a process fewer for ever would be worse.
            except Exception:
                _log.exception("no new gateway process")

    @property
    def _num_missing(self) -> int:
        return 0 if self._stopping else self._options.workers - len(self._staying) - self._num_coming

    @property
    def _patience_s(self) -> float:
        """With a process that was asked to end."""
        return self._options.drain_s + self._options.grace_s + END_PATIENCE_S

    @property
    def _staying(self) -> list[_Process]:
        return [process for process in self._processes if not process.stopping]

    async def _listen(self, process: _Process) -> None:
        silent = await listen(
            local_control(self._metrics.path, process.pid),
            "unwell",
            every_s=self._options.health_interval_s,
            while_=lambda: process in self._processes,
            patience_s=self._patience_s,
            heard=lambda unwell: self._heard(process.pid, unwell),
        )
        if silent:
            _log.error("gateway process %d is silent, and is killed", process.pid)
            process.kill()

    async def _end(self, process: _Process) -> None:
        process.stopping = True
        with contextlib.suppress(ProcessLookupError):
            process.process.terminate()
        try:
            async with asyncio.timeout(self._patience_s):
                await process.process.wait()
        except TimeoutError:
            _log.warning("a gateway process did not end and is killed")
            process.kill()
            await process.process.wait()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
