"""How an operator speaks to a running supervisor, and that to its gateways: JSON over Unix sockets of their owner."""

import asyncio
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vision.errors import ListingVisionError

__all__ = [
    "Command",
    "ControlServer",
    "ControlTimeout",
    "ControlUnavailable",
    "control_path",
    "monitor_heartbeat",
    "send_command",
]

_log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 600.0
"""A large model takes its time to load."""
HEARTBEAT_TIMEOUT_S = 3.0
MAX_MISSED_HEARTBEATS = 3
"""A process that has not answered so many times in a row is silent: its event loop stands still. Should all have stood
still, who asks too, it was asked once."""
_MAX_LINE_BYTES = 1 << 16

Command = Callable[..., Awaitable[Any]]


class ControlUnavailable(ListingVisionError):
    """Nobody listens there, or who did has ended."""


class ControlTimeout(ControlUnavailable):
    """Somebody may listen there, and says nothing."""


def control_path(port: int) -> Path:
    """Where the supervisor of a gateway port listens, for the same user of the same machine."""
    return Path(tempfile.gettempdir()) / f"listing-vision-{os.getuid()}" / f"{port}.sock"


class ControlServer:
    """Answers one command a connection; commands of a name are coroutine functions of keyword arguments."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError: the socket cannot be made."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.parent.stat().st_uid != os.getuid():
            raise OSError(f"{self._path.parent} belongs to somebody else; remove it")
        self._path.unlink(missing_ok=True)  # of a supervisor that was killed: the port is ours by now
        self._server = await asyncio.start_unix_server(self._handle_connection, self._path, limit=_MAX_LINE_BYTES)
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
    """What the process there answers.

    Raises:
        ControlUnavailable: nobody listens, or there is no answer.
        ListingVisionError: it refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as file:
                response = json.loads(file.readline() or b"{}")
    except (TimeoutError, BlockingIOError) as error:  # the latter: more are waiting already than it may have waiting
        raise ControlTimeout(f"no answer within {timeout_s:g} s at {path}") from error
    except (OSError, ValueError) as error:
        raise ControlUnavailable(f"nobody answers at {path} ({error})") from error
    if "error" in response:
        raise ListingVisionError(response["error"])
    if "result" not in response:
        raise ControlUnavailable(f"who listened at {path} ended before it answered")
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
    """Ask a process again and again, until it is silent. One that ends is not, unless it takes too long for it.

    Args:
        path: its socket.
        command: without arguments.
        interval_s: between an answer and the next question.
        should_continue: whether it is still to be asked.
        shutdown_timeout_s: from when it listens no longer to its end.
        on_heartbeat: called with each answer; does not wait for anything, as nobody listens meanwhile.

    Returns:
        Whether it is silent; else there is no need to listen any more.
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
            _log.warning("%s", error)
            if num_missed == MAX_MISSED_HEARTBEATS:
                return should_continue()
        except ControlUnavailable:
            num_missed = 0
            if time.monotonic() - last_heartbeat_s > shutdown_timeout_s:
                return should_continue()
        # Whatever it was, a watch that ends would leave a silent process for ever.
        except Exception:
            num_missed = 0
            _log.exception("listening at %s failed", path)
    return False
