"""The HTTP process of a supervised tree.

    python -m serving.http_api.process OPTIONS FD SOCKET

OPTIONS are `ServeOptions` as JSON. SOCKET is a listening socket that the process shares with its predecessor and its
successor; FD is where it writes that it listens. The process ends when its parent does.
"""

import asyncio
import functools
import os
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any

import uvicorn

from serving.config import ServeOptions
from serving.http_api.app import create_app
from serving.http_api.browser_guard import list_allowed_hosts
from serving.http_api.connections import ConnectionLimits, ConnectionTable, LimitedProtocol
from serving.http_api.upstream import Upstream
from serving.processes.control import ControlServer
from serving.processes.sockets import process_control_path
from vision.errors import ListingVisionError
from vision.runtime.cli import run_command
from vision.runtime.lifetime import die_with_parent
from vision.runtime.repeated_lines import limit_repeated_lines

__all__ = ["HttpServer"]


def main(options: str, descriptor: int, listen_descriptor: int) -> None:
    die_with_parent(signal.SIGTERM)
    limit_repeated_lines()
    supervisor, listen_socket = socket.socket(fileno=descriptor), socket.socket(fileno=listen_descriptor)
    asyncio.run(_serve(ServeOptions.from_json(options), supervisor, listen_socket))


async def _serve(options: ServeOptions, supervisor: socket.socket, listen_socket: socket.socket) -> None:
    assert options.runtime_folder is not None
    upstream = Upstream(options.runtime_folder)
    server = HttpServer(options, upstream)
    control = ControlServer(process_control_path(options.runtime_folder, os.getpid()), {"ping": _ping})
    await control.start()
    server.on_started = functools.partial(_report_ready, supervisor)
    try:
        # SIGTERM ends it once the requests in flight are done.
        await server.serve(sockets=[listen_socket])
    finally:
        await control.close()
        await upstream.close()


async def _ping() -> bool:
    return True


def _report_ready(supervisor: socket.socket) -> None:
    with supervisor:
        supervisor.send(b"ready")


class HttpServer(uvicorn.Server):
    """uvicorn with `serving.http_api.connections`; call `serve` with a listening socket."""

    def __init__(self, options: ServeOptions, upstream: Upstream, *, limits: ConnectionLimits | None = None) -> None:
        """Raises ListingVisionError: a certificate cannot be read."""
        allowed_hosts = list_allowed_hosts(options.host, options.http_hosts)
        self._limits = limits = limits or ConnectionLimits()
        table = ConnectionTable(limits.max_connections)
        config = uvicorn.Config(
            create_app(upstream, allowed_hosts=allowed_hosts, has_tls=options.tls is not None),
            http=functools.partial(LimitedProtocol, limits=limits, table=table),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            lifespan="on",
            timeout_keep_alive=limits.idle_timeout_s,
            timeout_graceful_shutdown=int(options.grace_period_s),
            **_build_tls_options(options),
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            certificate = f"{options.tls.certificate} and key {options.tls.key}" if options.tls else ""
            raise ListingVisionError(f"cannot serve HTTPS with certificate {certificate}: {error}") from error
        super().__init__(config)
        self.on_started: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn's own method has no deadline for the TLS handshake."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._create_protocol,
                sock=listen_socket,
                ssl=self.config.ssl,
                ssl_handshake_timeout=self._limits.handshake_timeout_s if self.config.ssl else None,
                backlog=self.config.backlog,
            )
            for listen_socket in sockets or []
        ]
        self.started = True
        self.on_started()

    def _create_protocol(self) -> asyncio.Protocol:
        create: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = create(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _build_tls_options(options: ServeOptions) -> dict[str, Any]:
    if options.tls is None:
        return {}
    found: dict[str, Any] = {"ssl_certfile": options.tls.certificate, "ssl_keyfile": options.tls.key}
    if options.tls.client_ca:
        found |= {"ssl_ca_certs": str(options.tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found


if __name__ == "__main__":
    run_command(main)
