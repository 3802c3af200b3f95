"""Control sockets: an operator commands the supervisor, the supervisor its processes. JSON lines, owner only."""

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.processes.sockets import ControlSocket
from vision.errors import ListingVisionError

__all__ = ["Command", "ControlServer", "ControlTimeout", "ControlUnavailable", "monitor_heartbeat", "send_command"]

_log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 600.0
"""A large model takes minutes to load."""
HEARTBEAT_TIMEOUT_S = 3.0
MAX_MISSED_HEARTBEATS = 3
"""Missed heartbeats in a row after which a process counts as frozen.

One is not enough: where the whole machine was suspended, the supervisor was too.
"""
_MAX_LINE_BYTES = 1 << 16

Command = Callable[..., Awaitable[Any]]


class ControlUnavailable(ListingVisionError):
    """No process listens on the socket, or it exited before it responded."""


class ControlTimeout(ControlUnavailable):
    """A process may listen on the socket but does not respond in time."""


class ControlServer:
    """Responds to one command per connection; each command is a coroutine function of keyword arguments."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._socket: ControlSocket | None = None

    async def start(self) -> None:
        """Raises OSError: the socket cannot be made."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.parent.stat().st_uid != os.getuid():
            raise OSError(f"{self._path.parent} belongs to another user; remove it")
        self._path.unlink(missing_ok=True)  # left by a supervisor that was killed; the port is ours by now
        self._socket = ControlSocket(self._path)
        self._server = await asyncio.start_unix_server(
            self._handle_connection, sock=self._socket, limit=_MAX_LINE_BYTES
        )
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            response = await self._execute(await reader.readline())
            writer.write(json.dumps(response).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError) as error:
            _log.debug("a control connection failed: %s", error)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            if self._socket:
                self._socket.fill_reserve()

    async def _execute(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands[request.pop("command")]
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"error": f"not a command of {', '.join(self._commands)}"}
        try:
            return {"result": await command(**request)}
        except (ListingVisionError, OSError) as error:
            return {"error": str(error)}
        except Exception as error:
            _log.exception("a control command failed")
            return {"error": f"{type(error).__name__}: {error}"}


def send_command(path: Path, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **arguments: Any) -> Any:
    """Return the result of a command.

    Raises:
        ControlUnavailable: no process listens, or it does not respond.
        ListingVisionError: it refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as file:
                response = json.loads(file.readline() or b"{}")
    except (TimeoutError, BlockingIOError) as error:  # BlockingIOError: the socket's backlog is full
        raise ControlTimeout(f"no response within {timeout_s:g} s at {path}") from error
    except (OSError, ValueError) as error:
        raise ControlUnavailable(f"no process listens at {path} ({error})") from error
    if "error" in response:
        raise ListingVisionError(response["error"])
    if "result" not in response:
        raise ControlUnavailable(f"the process at {path} exited before it responded")
    return response["result"]


async def monitor_heartbeat(
    path: Path,
    command: str,
    *,
    interval_s: float,
    should_continue: Callable[[], bool],
    shutdown_timeout_s: float,
    on_heartbeat: Callable[[Any], None] | None = None,
) -> bool:
    """Send a command again and again until the process is frozen or there is no need to monitor it any more.

    A process that shuts down is not frozen, unless that takes too long.

    Args:
        path: the process' control socket.
        command: a command without arguments.
        interval_s: time between a response and the next command.
        should_continue: whether the process is still to be monitored.
        shutdown_timeout_s: longest time between the end of its socket and its exit.
        on_heartbeat: called with each response; must not block, as nothing is monitored meanwhile.

    Returns:
        Whether the process is frozen.
    """
    num_missed = 0
    last_heartbeat_s = time.monotonic()
    while should_continue():
        if not num_missed:
            await asyncio.sleep(interval_s)
        try:
            response = await asyncio.to_thread(send_command, path, command, timeout_s=HEARTBEAT_TIMEOUT_S)
            num_missed = 0
            last_heartbeat_s = time.monotonic()
            if on_heartbeat:
                on_heartbeat(response)
        except ControlTimeout as error:
            num_missed += 1
            _log.warning("missed heartbeat: %s", error)
            if num_missed == MAX_MISSED_HEARTBEATS:
                return should_continue()
        except ControlUnavailable:
            num_missed = 0
            if time.monotonic() - last_heartbeat_s > shutdown_timeout_s:
                return should_continue()
        # Whatever failed, a monitor that ends would leave a frozen process running for good.
        except Exception:
            num_missed = 0
            _log.exception("the heartbeat at %s failed", path)
    return False
