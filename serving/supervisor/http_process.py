"""The HTTP process under its supervisor, which holds its listening socket: restarted when it exits or freezes."""

import asyncio
import logging
import socket
from collections.abc import Callable

from serving.config import ServeOptions
from serving.processes.sockets import open_listening_socket
from serving.supervisor.managed_process import ManagedProcess, RestartBackoff

__all__ = ["HttpProcess"]

_log = logging.getLogger(__name__)


class HttpProcess:
    """Runs one process at a time, two while one replaces the other.

    The listening socket outlives the processes: connections that arrive while none accepts wait.
    """

    def __init__(self, *, on_exit: Callable[[], None]) -> None:
        """Args: on_exit: called after each unexpected exit."""
        self._on_exit = on_exit
        self._process: ManagedProcess | None = None
        self._listening: socket.socket | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._backoff = RestartBackoff()

    async def start(self, options: ServeOptions) -> None:
        """Return once it listens.

        Raises:
            OSError: it does not listen; the message or its log says why.
            TimeoutError: nor did it exit.
        """
        try:
            self._listening = open_listening_socket(options.host, options.http_port or 0)
        except OSError as error:
            raise OSError(
                f"cannot serve HTTP on {options.host}:{options.http_port}: {error.strerror}; choose another --http-port"
            ) from error
        self._process = await self._start_process(options)
        self._restarting = asyncio.create_task(self._keep_running(options))
        self._log_address(options)

    async def replace(self, options: ServeOptions) -> None:
        """Start a process with new options and certificates, then stop the old one after its requests in flight."""
        await self._stop_watching()
        old = self._process
        try:
            self._process = await self._start_process(options)
            self._log_address(options)
        except (OSError, TimeoutError) as error:
            _log.error("no new HTTP process, the old one stays: %s", error)
        self._restarting = asyncio.create_task(self._keep_running(options))
        if old and old is not self._process:
            await old.stop()

    async def stop(self) -> None:
        await self._stop_watching()
        if self._listening:
            self._listening.close()
        process, self._process = self._process, None
        if process:
            await process.stop()

    async def _stop_watching(self) -> None:
        if self._restarting:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)

    async def _start_process(self, options: ServeOptions) -> ManagedProcess:
        assert self._listening is not None
        return await ManagedProcess.start(
            "HTTP process", "serving.http_api.process", options, listening=[self._listening]
        )

    async def _keep_running(self, options: ServeOptions) -> None:
        while True:
            if self._process:
                status = await self._process.watch("ping")
                self._process = None
                _log.error("the HTTP process exited with status %s; another one is started", status)
                self._on_exit()
            await asyncio.sleep(self._backoff.record_exit())
            try:
                self._process = await self._start_process(options)
            except (OSError, TimeoutError) as error:
                _log.error("no new HTTP process: %s", error)

    def _log_address(self, options: ServeOptions) -> None:
        assert self._listening is not None
        scheme, port = "https" if options.tls else "http", self._listening.getsockname()[1]
        _log.info("HTTP at %s://%s:%d", scheme, f"[{options.host}]" if ":" in options.host else options.host, port)
