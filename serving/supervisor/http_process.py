"""The HTTP process as its supervisor sees it: started, replaced when it dies or falls silent, stopped."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serving.config import ServeOptions, process_control_path
from serving.processes.control import monitor_heartbeat

__all__ = ["HttpProcess"]

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
KILL_MARGIN_S = 15.0
"""Beyond the grace for requests in work, before one that was asked to end is killed."""
RESTART_DELAY_S = 0.5
"""Before one that has died is started again."""


class HttpProcess:
    """One at a time; the port stays the same."""

    def __init__(self, *, on_exit: Callable[[], None]) -> None:
        """Args: on_exit: called after each unexpected exit."""
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._shutdown_timeout_s = KILL_MARGIN_S
        self.port = 0

    async def start(self, options: ServeOptions) -> None:
        """Return once it listens.

        Raises:
            OSError: it does not; its log says why.
        """
        self._shutdown_timeout_s = options.grace_period_s + KILL_MARGIN_S
        await self._start(replace(options, http_port=self.port or options.http_port))
        self._watch = asyncio.create_task(self._keep_running(options))
        _log.info("HTTP at %s://%s:%d", "https" if options.tls else "http", options.host, self.port)

    async def replace(self, options: ServeOptions) -> None:
        """Start it anew, with another certificate; requests in work are answered."""
        if self._process:
            await self.stop()
            try:
                await self.start(options)
            except (OSError, TimeoutError) as error:
                _log.error("no new HTTP process: %s", error)
                self._watch = asyncio.create_task(self._keep_running(options))  # which starts another

    async def stop(self) -> None:
        if self._watch:
            self._watch.cancel()
        process, self._process = self._process, None
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(self._shutdown_timeout_s):
                    await process.wait()
            except TimeoutError:
                _log.warning("the HTTP process did not end and is killed")
                process.kill()
                await process.wait()

    async def _start(self, options: ServeOptions) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.http_api.process", options.to_json(), str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).resolve().parents[2],
                start_new_session=True,
            )  # fmt: skip
            theirs.close()
            ours.setblocking(False)
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    response = await asyncio.get_running_loop().sock_recv(ours, 16)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                raise
        if not response:
            raise OSError("the HTTP process did not come up; see the log above")
        self.port = int(response)

    async def _keep_running(self, options: ServeOptions) -> None:
        while process := self._process:
            heartbeat_task = asyncio.create_task(self._monitor_heartbeat(process, options))
            try:
                status = await process.wait()
            finally:
                heartbeat_task.cancel()
            _log.error("the HTTP process ended with status %s; another is started", status)
            self._on_exit()
            await asyncio.sleep(RESTART_DELAY_S)
            try:
                await self._start(replace(options, http_port=self.port))
            except (OSError, TimeoutError) as error:
                _log.error("no new HTTP process: %s", error)

    async def _monitor_heartbeat(self, process: asyncio.subprocess.Process, options: ServeOptions) -> None:
        assert options.runtime_folder is not None
        path = process_control_path(options.runtime_folder, process.pid)
        is_frozen = await monitor_heartbeat(
            path,
            "ping",
            interval_s=options.health_interval_s,
            should_continue=lambda: process.returncode is None,
            shutdown_timeout_s=self._shutdown_timeout_s,
        )
        if is_frozen:
            _log.error("the HTTP process is silent, and is killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
