"""The operators' HTTP port: `/metrics`, `/healthz`, `/readyz`."""

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from serving.processes.sockets import format_address

__all__ = ["HttpResponse", "StatusServer"]

_log = logging.getLogger(__name__)


class HttpResponse(NamedTuple):
    status: int
    content_type: str
    body: bytes


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

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def handle_error(self, request: object, client_address: object) -> None:
                _log.debug("a status request failed", exc_info=True)

        try:
            self._server = Server((host, port), Handler)
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
