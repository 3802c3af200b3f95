"""Calls from the HTTP process to the gateway processes, over their local sockets."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.api.limits import MESSAGE_LIMIT_BYTES
from serving.processes.sockets import gateway_socket_address

__all__ = ["Upstream"]

_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
]
_UNREACHABLE_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Upstream:
    """Calls the gateway processes in turn; a process that has exited is skipped."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: where gateway processes listen, on sockets named by their pids."""
        self._folder = folder
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._next_index = itertools.count()

    async def call(self, method: str, request: Any, *, timeout_s: float, metadata: Sequence[tuple[str, str]]) -> Any:
        """Return the response of a gateway process.

        Raises:
            grpc.aio.AioRpcError: the error of the service, or of the last process tried.
        """
        pids = self._list_pids()
        start = next(self._next_index)
        for attempt in range(max(1, len(pids))):
            stub = pb_grpc.ListingVisionServiceStub(await self._get_channel(pids, start + attempt))
            try:
                return await getattr(stub, method)(request, timeout=timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                is_refused = read_error_details(error).is_from_service
                if error.code() not in _UNREACHABLE_CODES or is_refused or attempt + 1 >= len(pids):
                    raise
        raise AssertionError("unreachable")

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def _get_channel(self, pids: list[int], turn: int) -> grpc.aio.Channel:
        pid = pids[turn % len(pids)] if pids else 0
        for gone in [known for known in self._channels if known not in pids and known != pid]:
            await self._channels.pop(gone).close()
        if pid not in self._channels:
            self._channels[pid] = grpc.aio.insecure_channel(gateway_socket_address(self._folder, pid), options=_OPTIONS)
        return self._channels[pid]

    def _list_pids(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("[0-9]*.sock") if _is_alive(int(path.stem)))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
