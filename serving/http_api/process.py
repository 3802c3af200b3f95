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

from serving.config import ServeOptions
from serving.http_api.app import create_app
from serving.http_api.browser_guard import list_allowed_hosts
from serving.http_api.upstream import Upstream
from serving.processes.control import ControlServer
from serving.processes.lifetime import die_with_parent
from serving.processes.sockets import process_control_path
from vision.errors import ListingVisionError
from vision.runtime.cli import run_command

__all__ = ["create_server"]


def main(options: str, descriptor: int) -> None:
    die_with_parent(signal.SIGTERM)
    asyncio.run(_serve(ServeOptions.from_json(options), socket.socket(fileno=descriptor)))


async def _serve(options: ServeOptions, supervisor: socket.socket) -> None:
    assert options.runtime_folder is not None
    upstream = Upstream(options.runtime_folder)
    server, listen_socket = create_server(options, upstream)
    control = ControlServer(process_control_path(options.runtime_folder, os.getpid()), {"ping": _ping})
    await control.start()
    with supervisor:
        supervisor.send(str(listen_socket.getsockname()[1]).encode())
    try:
        # SIGTERM ends it once the requests in flight are done.
        await server.serve(sockets=[listen_socket])
    finally:
        await control.close()
        await upstream.close()


async def _ping() -> bool:
    return True


def create_server(options: ServeOptions, upstream: Upstream) -> tuple[uvicorn.Server, socket.socket]:
    """Return a server and the socket to serve on.

    Raises:
        ListingVisionError: the port is taken, or a certificate cannot be read.
    """
    assert options.runtime_folder is not None
    config = uvicorn.Config(
        create_app(
            upstream,
            allowed_hosts=list_allowed_hosts(options.host, options.http_hosts),
            has_tls=options.tls is not None,
        ),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        limit_concurrency=256,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(options.grace_period_s),
        **_build_tls_options(options),
    )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listen_socket = socket.socket(family)
    listen_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listen_socket.bind((options.host, options.http_port or 0))
        listen_socket.listen(256)
        config.load()
    except (OSError, ssl.SSLError) as error:
        listen_socket.close()
        certificate = f" with certificate {options.tls.certificate} and key {options.tls.key}" if options.tls else ""
        raise ListingVisionError(
            f"cannot serve HTTP on {options.host}:{options.http_port}{certificate}: {error}"
        ) from error
    return uvicorn.Server(config), listen_socket


def _build_tls_options(options: ServeOptions) -> dict[str, Any]:
    if options.tls is None:
        return {}
    found: dict[str, Any] = {"ssl_certfile": options.tls.certificate, "ssl_keyfile": options.tls.key}
    if options.tls.client_ca:
        found |= {"ssl_ca_certs": str(options.tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found


if __name__ == "__main__":
    run_command(main)
