"""A child process of the supervisor: started, awaited until it is ready, monitored, and stopped."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from serving.config import ServeOptions
from serving.processes.control import ControlUnavailable, monitor_heartbeat, send_command
from serving.processes.sockets import process_control_path

__all__ = ["KILL_MARGIN_S", "ManagedProcess", "RestartBackoff"]

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
KILL_MARGIN_S = 15.0
"""Time beyond drain and grace period after which a process that was told to stop is killed."""
EXIT_TIMEOUT_S = 2.0
"""Longest time between the last response of a process and its exit."""
RESTART_BACKOFF_S = (0.0, 0.5, 2.0, 5.0)
"""Delay before a process is started again, by the number of recent exits; the last one for all larger numbers."""
RECENT_EXITS_WINDOW_S = 60.0
_READY_MESSAGE_BYTES = 16


class ManagedProcess:
    """A process that takes `ServeOptions`, reports that it is ready, and answers commands on its control socket."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, options: ServeOptions) -> None:
        assert options.runtime_folder is not None
        self._name = f"{name} {process.pid}"
        self._process = process
        self._options = options
        self._control_path = process_control_path(options.runtime_folder, process.pid)
        self.is_stopping = False
        self.ready_message = b""

    @classmethod
    async def start(
        cls,
        name: str,
        module: str,
        options: ServeOptions,
        environment: Mapping[str, str] | None = None,
        listening: Sequence[socket.socket] = (),
    ) -> Self:
        """Run `python -m module OPTIONS FD`; return once the process has written to FD that it is ready.

        Args:
            name: of the process, in logs.
            module: the process runs.
            options: as JSON, its first argument.
            environment: default: that of this process.
            listening: sockets that the process gets; their descriptors are further arguments.

        Raises:
            OSError: the process did not become ready; its log says why.
            TimeoutError: nor did it exit.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            descriptors = [theirs.fileno(), *(shared.fileno() for shared in listening)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, options.to_json(), *map(str, descriptors),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                cwd=Path(__file__).resolve().parents[2],
                env=environment,
                # A terminal's Ctrl-C reaches the supervisor alone, which then stops the others in order.
                start_new_session=True,
                # Whatever it writes, suggestions and outcomes too, is for its user alone.
                umask=0o077,
            )  # fmt: skip
            managed = cls(name, process, options)
            theirs.close()
            ours.setblocking(False)
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    managed.ready_message = await asyncio.get_running_loop().sock_recv(ours, _READY_MESSAGE_BYTES)
                if not managed.ready_message:
                    raise OSError(f"the {name} did not start; see the log above")
            except BaseException:
                await managed.stop()
                raise
        return managed

    @property
    def pid(self) -> int:
        return self._process.pid

    async def watch(self, command: str, on_heartbeat: Callable[[Any], None] | None = None) -> int:
        """Send `command` at every health interval; kill the process if it stops answering. Return its exit status."""
        heartbeat = asyncio.create_task(self._kill_when_frozen(command, on_heartbeat))
        try:
            return await self._process.wait()
        finally:
            heartbeat.cancel()

    async def _kill_when_frozen(self, command: str, on_heartbeat: Callable[[Any], None] | None) -> None:
        is_frozen = await monitor_heartbeat(
            self._control_path,
            command,
            interval_s=self._options.health_interval_s,
            should_continue=lambda: self._process.returncode is None,
            shutdown_timeout_s=self._shutdown_timeout_s,
            on_heartbeat=on_heartbeat,
        )
        if is_frozen:
            _log.error("%s does not answer and is killed", self._name)
            self.send_signal(signal.SIGKILL)

    async def send_command(self, command: str, *, timeout_s: float, **arguments: object) -> object:
        """Return the response to a command.

        Raises:
            ControlUnavailable: the process does not answer.
            ListingVisionError: it refuses.
        """
        try:
            response: object = await asyncio.to_thread(
                send_command, self._control_path, command, timeout_s=timeout_s, **arguments
            )
        except ControlUnavailable as error:
            raise type(error)(f"{self._name}: {error}") from error
        return response

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def has_exited(self) -> bool:
        """Wait for `EXIT_TIMEOUT_S` at most; return whether the process has exited by then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self._process.wait()
        return self._process.returncode is not None

    async def stop(self) -> None:
        """Let the process finish its calls in flight; kill it if that takes longer than drain and grace period."""
        self.is_stopping = True
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._shutdown_timeout_s):
                await self._process.wait()
        except TimeoutError:
            _log.warning("%s does not stop and is killed", self._name)
            self.send_signal(signal.SIGKILL)
            await self._process.wait()

    @property
    def _shutdown_timeout_s(self) -> float:
        return self._options.drain_s + self._options.grace_period_s + KILL_MARGIN_S


class RestartBackoff:
    """The delay before the next start: none after a rare exit, longer the more exits there were lately."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._exits_s: list[float] = []

    def record_exit(self) -> float:
        """Return how many seconds to wait before the process is started again."""
        now_s = self._clock()
        self._exits_s = [exit_s for exit_s in self._exits_s if now_s - exit_s < RECENT_EXITS_WINDOW_S]
        delay_s = RESTART_BACKOFF_S[min(len(self._exits_s), len(RESTART_BACKOFF_S) - 1)]
        self._exits_s.append(now_s)
        return delay_s
