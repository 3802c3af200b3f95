"""The HTTP process under its supervisor: restarted when it exits or freezes, on the same port."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from serving.config import ServeOptions
from serving.supervisor.managed_process import ManagedProcess, RestartBackoff

__all__ = ["HttpProcess"]

_log = logging.getLogger(__name__)


class HttpProcess:
    """Runs one process at a time; the port stays the same."""

    def __init__(self, *, on_exit: Callable[[], None]) -> None:
        """Args: on_exit: called after each unexpected exit."""
        self._on_exit = on_exit
        self._process: ManagedProcess | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._backoff = RestartBackoff()
        self.port = 0

    async def start(self, options: ServeOptions) -> None:
        """Return once it listens.

        Raises:
            OSError: it does not listen; its log says why.
            TimeoutError: nor did it exit.
        """
        await self._start_process(options)
        self._restarting = asyncio.create_task(self._keep_running(options))
        _log.info("HTTP at %s://%s:%d", "https" if options.tls else "http", options.host, self.port)

    async def replace(self, options: ServeOptions) -> None:
        """Restart with new options and certificates, after the requests in flight."""
        await self.stop()
        try:
            await self.start(options)
        except (OSError, TimeoutError) as error:
            _log.error("no new HTTP process: %s", error)
            self._restarting = asyncio.create_task(self._keep_running(options))

    async def stop(self) -> None:
        if self._restarting:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        process, self._process = self._process, None
        if process:
            await process.stop()

    async def _start_process(self, options: ServeOptions) -> None:
        options = replace(options, http_port=self.port or options.http_port)
        self._process = await ManagedProcess.start("HTTP process", "serving.http_api.process", options)
        self.port = int(self._process.ready_message)

    async def _keep_running(self, options: ServeOptions) -> None:
        while True:
            if self._process:
                status = await self._process.watch("ping")
                self._process = None
                _log.error("the HTTP process exited with status %s; another one is started", status)
                self._on_exit()
            await asyncio.sleep(self._backoff.record_exit())
            try:
                await self._start_process(options)
            except (OSError, TimeoutError) as error:
                _log.error("no new HTTP process: %s", error)
