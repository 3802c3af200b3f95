"""One gateway process of a supervised tree.

    python -m serving.supervisor.gateway_worker OPTIONS FD

OPTIONS are `ServeOptions` as JSON; the process writes to FD once it serves, and exits when its parent does. Its
supervisor changes its traffic split over a socket in the runtime folder (`serving.processes.control`).
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from typing import Any

from serving.config import ServeOptions
from serving.gateway.server import GatewayServer
from serving.observability import tracing
from serving.processes.control import Command, ControlServer
from serving.processes.sockets import format_address, process_control_path
from serving.rollout.traffic_split import TrafficSplit
from vision.runtime.cli import run_command
from vision.runtime.lifetime import die_with_parent, keep_freed_memory
from vision.runtime.repeated_lines import limit_repeated_lines

__all__ = ["main"]

_log = logging.getLogger(__name__)

MAX_FREED_BYTES = 256 << 20
"""Freed memory that a process keeps at its heap's end for the next large message: gRPC copies one of 60 MiB twice, and
the kernel would zero the pages of each copy again, while the process answers nobody."""


def main(options: str, descriptor: int) -> None:
    die_with_parent(signal.SIGTERM)
    limit_repeated_lines()
    keep_freed_memory(MAX_FREED_BYTES)
    asyncio.run(_serve(ServeOptions.from_json(options), socket.socket(fileno=descriptor)))


async def _serve(options: ServeOptions, supervisor: socket.socket) -> None:
    stop_requested = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop_requested.set)
    traces = tracing.start(options.traces, "listing-vision-gateway") if options.traces else None
    server = GatewayServer(options)
    control: ControlServer | None = None
    await server.start()
    if options.runtime_folder:
        control = ControlServer(process_control_path(options.runtime_folder, os.getpid()), _create_commands(server))
        await control.start()
    # What exists by now stays; a garbage collection during calls need not walk it.
    gc.collect()
    gc.freeze()
    _log.info("gateway process %d serves on %s", os.getpid(), format_address(options.host, server.port))
    with supervisor:
        supervisor.send(b"ready")
    await stop_requested.wait()
    if control:
        await control.close()
    await server.stop()
    if traces:
        traces.stop()


def _create_commands(server: GatewayServer) -> dict[str, Command]:
    async def apply_traffic_split(traffic_split: dict[str, Any]) -> None:
        await server.apply_traffic_split(TrafficSplit.from_dict(traffic_split))

    async def list_unhealthy() -> list[str]:
        return server.list_unhealthy()

    return {"apply_traffic_split": apply_traffic_split, "list_unhealthy": list_unhealthy}


if __name__ == "__main__":
    run_command(main)
