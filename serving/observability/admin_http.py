"""The operator's HTTP port: `/metrics` of the whole tree and of its Triton, `/healthz`, `/readyz`."""

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

__all__ = ["HttpResponse", "StatusServer"]

_log = logging.getLogger(__name__)


class HttpResponse(NamedTuple):
    status: int
    content_type: str
    body: bytes


class StatusServer:
    """Answers GET on a few paths, each by a function that is called on a thread of its own."""

    def __init__(self, host: str, port: int, paths: dict[str, Callable[[], HttpResponse]]) -> None:
        """Raises OSError: the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # of a connection that says nothing

            def do_GET(self) -> None:
                handler = paths.get(self.path.partition("?")[0])
                if handler is None:
                    known = ", ".join(paths)
                    response = HttpResponse(404, "text/plain", f"there is {known}\n".encode())
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

            def handle_error(self, request: object, client_address: object) -> None:
                _log.debug("a status request failed", exc_info=True)

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --status-port") from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
