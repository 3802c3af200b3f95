"""The HTTP process as its supervisor sees it: started, replaced when it dies or falls silent, stopped."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serving.config import ServeOptions, local_control
from serving.processes.control import listen

__all__ = ["HttpProcess"]

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
END_PATIENCE_S = 15.0
"""Beyond the grace for requests in work, before one that was asked to end is killed."""
PAUSE_S = 0.5
"""Before one that has died is started again."""


class HttpProcess:
    """One at a time; the port stays the same."""

    def __init__(self, *, died: Callable[[], None]) -> None:
        """Args: died: told of each death."""
        self._died = died
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._patience_s = END_PATIENCE_S
        self.port = 0

    async def start(self, options: ServeOptions) -> None:
        """Return once it listens.

        Raises:
            OSError: it does not; its log says why.
        """
        self._patience_s = options.grace_s + END_PATIENCE_S
        await self._start(replace(options, http_port=self.port or options.http_port))
        self._watch = asyncio.create_task(self._watched(options))
        _log.info("HTTP at %s://%s:%d", "https" if options.tls else "http", options.host, self.port)

    async def replace(self, options: ServeOptions) -> None:
        """Start it anew, with another certificate; requests in work are answered."""
        if self._process:
            await self.stop()
            try:
                await self.start(options)
            except (OSError, TimeoutError) as error:
                _log.error("no new HTTP process: %s", error)
                self._watch = asyncio.create_task(self._watched(options))  # which starts another

    async def stop(self) -> None:
        if self._watch:
            self._watch.cancel()
        process, self._process = self._process, None
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(self._patience_s):
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
                    answer = await asyncio.get_running_loop().sock_recv(ours, 16)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                raise
        if not answer:
            raise OSError("the HTTP process did not come up; see the log above")
        self.port = int(answer)

    async def _watched(self, options: ServeOptions) -> None:
        while process := self._process:
            listening = asyncio.create_task(self._listen(process, options))
            try:
                status = await process.wait()
            finally:
                listening.cancel()
            _log.error("the HTTP process ended with status %s; another is started", status)
            self._died()
            await asyncio.sleep(PAUSE_S)
            try:
                await self._start(replace(options, http_port=self.port))
            except (OSError, TimeoutError) as error:
                _log.error("no new HTTP process: %s", error)

    async def _listen(self, process: asyncio.subprocess.Process, options: ServeOptions) -> None:
        assert options.local_folder is not None
        path = local_control(options.local_folder, process.pid)
        silent = await listen(
            path,
            "alive",
            every_s=options.health_interval_s,
            while_=lambda: process.returncode is None,
            patience_s=self._patience_s,
        )
        if silent:
            _log.error("the HTTP process is silent, and is killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
