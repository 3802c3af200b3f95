"""One gateway process of a supervised tree.

    python -m serving.supervisor.gateway_worker OPTIONS FD

OPTIONS are `ServeOptions` as JSON; `READY` is written to FD once it serves, and the process ends when its parent does.
Its supervisor has it change its routes over a socket in the local folder (`serving.processes.control`).
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from typing import Any

from serving.config import ServeOptions, local_control
from serving.gateway.server import GatewayServer
from serving.observability import tracing
from serving.processes.control import Command, ControlServer
from serving.processes.lifetime import die_with_parent
from serving.rollout.traffic_split import Routes
from vision.runtime.cli import run_command

__all__ = ["READY"]

_log = logging.getLogger(__name__)

READY = b"ready"


def main(options: str, descriptor: int) -> None:
    die_with_parent(signal.SIGTERM)
    asyncio.run(_serve(ServeOptions.from_json(options), socket.socket(fileno=descriptor)))


async def _serve(options: ServeOptions, supervisor: socket.socket) -> None:
    stop_asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop_asked.set)
    traces = tracing.start(options.traces, "listing-vision-gateway") if options.traces else None
    server = GatewayServer(options)
    control: ControlServer | None = None
    await server.start()
    if options.local_folder:
        control = ControlServer(local_control(options.local_folder, os.getpid()), _commands(server))
        await control.start()
    # What was built to start with stays; a collection in the middle of calls need not walk it.
    gc.collect()
    gc.freeze()
    _log.info("gateway process %d serves on %s:%d", os.getpid(), options.host, server.port)
    with supervisor:
        supervisor.send(READY)
    await stop_asked.wait()
    if control:
        await control.close()
    await server.stop()
    if traces:
        traces.stop()


def _commands(server: GatewayServer) -> dict[str, Command]:
    async def route(routes: dict[str, Any]) -> None:
        await server.route(Routes.from_dict(routes))

    async def unwell() -> list[str]:
        return server.unwell()

    return {"route": route, "unwell": unwell}


if __name__ == "__main__":
    run_command(main)
