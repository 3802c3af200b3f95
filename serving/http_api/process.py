"""The HTTP process of a supervised tree.

    python -m serving.http_api.process OPTIONS FD

OPTIONS are `ServeOptions` as JSON; the port is written to FD once it listens. The process ends when its parent does.
"""

import asyncio
import os
import signal
import socket
import ssl
from typing import Any

import uvicorn

from serving.config import ServeOptions, local_control
from serving.http_api.app import make_app
from serving.http_api.taxonomies import Taxonomies
from serving.http_api.upstream import Upstream
from serving.processes.control import ControlServer
from serving.processes.lifetime import die_with_parent
from vision.errors import ListingVisionError
from vision.runtime.cli import run_command

__all__ = ["make_server"]


def main(options: str, descriptor: int) -> None:
    die_with_parent(signal.SIGTERM)
    asyncio.run(_serve(ServeOptions.from_json(options), socket.socket(fileno=descriptor)))


async def _serve(options: ServeOptions, supervisor: socket.socket) -> None:
    assert options.local_folder is not None
    upstream = Upstream(options.local_folder)
    server, listening = make_server(options, upstream)
    control = ControlServer(local_control(options.local_folder, os.getpid()), {"alive": _alive})
    await control.start()
    with supervisor:
        supervisor.send(str(listening.getsockname()[1]).encode())
    try:
        # It ends on SIGTERM, after the requests in work.
        await server.serve(sockets=[listening])
    finally:
        await control.close()
        await upstream.close()


async def _alive() -> bool:
    return True


def make_server(options: ServeOptions, upstream: Upstream) -> tuple[uvicorn.Server, socket.socket]:
    """A server, and the socket that it is to listen on.

    Raises:
        ListingVisionError: the port is taken, or a certificate cannot be read.
    """
    assert options.local_folder is not None
    config = uvicorn.Config(
        make_app(upstream, Taxonomies(options.local_folder)),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        limit_concurrency=256,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(options.grace_s),
        **_tls(options),
    )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.http_port or 0))
        listening.listen(256)
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ListingVisionError(f"cannot serve HTTP on {options.host}:{options.http_port}: {error}") from error
    return uvicorn.Server(config), listening


def _tls(options: ServeOptions) -> dict[str, Any]:
    if options.tls is None:
        return {}
    found: dict[str, Any] = {"ssl_certfile": options.tls.certificate, "ssl_keyfile": options.tls.key}
    if options.tls.client_ca:
        found |= {"ssl_ca_certs": str(options.tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found


if __name__ == "__main__":
    run_command(main)
