"""The operators' HTTP port: `/metrics`, `/healthz`, `/readyz`."""

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from serving.processes.sockets import LISTEN_BACKLOG, format_address

__all__ = ["HttpResponse", "StatusServer"]

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""Open connections, each of which has a thread. One more ends the oldest: a probe or a scraper is done long before."""


class HttpResponse(NamedTuple):
    status: int
    content_type: str
    body: bytes


class _Server(ThreadingHTTPServer):
    """Serves each connection on a thread of its own, and only the newest ones."""

    daemon_threads = True
    request_queue_size = LISTEN_BACKLOG

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, None] = {}
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            if len(self._connections) > MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):  # its caller has gone
                    oldest.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
            super().close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("a status request failed", exc_info=True)


class StatusServer:
    """Responds to GET on a few paths, each with a function that is called on a thread of its own."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], HttpResponse]]) -> None:
        """Raises OSError: the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds, for an idle connection

            def do_GET(self) -> None:
                handler = pages.get(self.path.partition("?")[0])
                if handler is None:
                    known = ", ".join(pages)
                    response = HttpResponse(404, "text/plain", f"pages: {known}\n".encode())
                else:
                    response = handler()
                self.send_response(response.status)
                self.send_header("Content-Type", response.content_type)
                self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)

            def log_message(self, format: str, *arguments: object) -> None:
                _log.debug(format, *arguments)

        try:
            self._server = _Server(host, port, Handler)
        except OSError as error:
            raise OSError(
                f"cannot listen on {format_address(host, port)}: {error.strerror}; choose another --status-port"
            ) from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
