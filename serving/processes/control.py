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

__all__ = ["Command", "ControlServer", "NoAnswer", "NoAnswerInTime", "ask", "control_path", "listen"]

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 600.0
"""A large model takes its time to load."""
LISTEN_TIMEOUT_S = 3.0
SILENT_TIMES = 3
"""A process that has not answered so many times in a row is silent: its event loop stands still. Should all have stood
still, who asks too, it was asked once."""
_LIMIT_BYTES = 1 << 16

Command = Callable[..., Awaitable[Any]]


class NoAnswer(ListingVisionError):
    """Nobody listens there, or who did has ended."""


class NoAnswerInTime(NoAnswer):
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
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT_BYTES)
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(await reader.readline())
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError) as error:
            _log.debug("a control connection failed: %s", error)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            command = self._commands[asked.pop("command")]
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"error": f"not a command of {', '.join(self._commands)}"}
        try:
            return {"answer": await command(**asked)}
        except (ListingVisionError, OSError) as error:
            return {"error": str(error)}
        except Exception as error:
            _log.exception("a control command failed")
            return {"error": f"{type(error).__name__}: {error}"}


def ask(path: Path, command: str, *, answer_timeout_s: float = ANSWER_TIMEOUT_S, **arguments: Any) -> Any:
    """What the process there answers.

    Raises:
        NoAnswer: nobody listens, or there is no answer.
        ListingVisionError: it refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(answer_timeout_s)
            sock.connect(str(path))
            sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as file:
                answer = json.loads(file.readline() or b"{}")
    except (TimeoutError, BlockingIOError) as error:  # the latter: more are waiting already than it may have waiting
        raise NoAnswerInTime(f"no answer within {answer_timeout_s:g} s at {path}") from error
    except (OSError, ValueError) as error:
        raise NoAnswer(f"nobody answers at {path} ({error})") from error
    if "error" in answer:
        raise ListingVisionError(answer["error"])
    if "answer" not in answer:
        raise NoAnswer(f"who listened at {path} ended before it answered")
    return answer["answer"]


async def listen(
    path: Path,
    command: str,
    *,
    every_s: float,
    while_: Callable[[], bool],
    patience_s: float,
    heard: Callable[[Any], None] | None = None,
) -> bool:
    """Ask a process again and again, until it is silent. One that ends is not, unless it takes too long for it.

    Args:
        path: its socket.
        command: without arguments.
        every_s: between an answer and the next question.
        while_: whether it is still to be asked.
        patience_s: from when it listens no longer to its end.
        heard: told of each answer; does not wait for anything, as nobody listens meanwhile.

    Returns:
        Whether it is silent; else there is no need to listen any more.
    """
    num_silent = 0
    heard_s = time.monotonic()
    while while_():
        if not num_silent:
            await asyncio.sleep(every_s)
        try:
            answer = await asyncio.to_thread(ask, path, command, answer_timeout_s=LISTEN_TIMEOUT_S)
            num_silent = 0
            heard_s = time.monotonic()
            if heard:
                heard(answer)
        except NoAnswerInTime as error:
            num_silent += 1
            _log.warning("%s", error)
            if num_silent == SILENT_TIMES:
                return while_()
        except NoAnswer:
            num_silent = 0
            if time.monotonic() - heard_s > patience_s:
                return while_()
        # Whatever it was, a watch that ends would leave a silent process for ever.
        except Exception:
            num_silent = 0
            _log.exception("listening at %s failed", path)
    return False
