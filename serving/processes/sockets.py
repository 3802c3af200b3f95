"""Addresses at which the processes of one `serve` reach each other, and the ports that they listen on."""

import contextlib
import errno
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from serving.processes.temporary_folders import create_private_folder, list_private_folders

__all__ = [
    "ControlSocket",
    "find_free_ports",
    "format_address",
    "gateway_socket_address",
    "is_loopback",
    "open_listening_socket",
    "process_control_path",
    "reserve_port",
    "supervisor_control_path",
]

LISTEN_BACKLOG = 1024
"""Connections that wait to be accepted; the kernel may allow fewer (`net.core.somaxconn`)."""
_NUM_RESERVED = 8
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class ControlSocket(socket.socket):
    """A Unix socket that accepts connections even where callers have taken all descriptors of the process.

    It keeps a few descriptors open, and closes one for a connection that finds no other.

    Raises:
        OSError: the socket cannot be made at this path.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reserve: list[int] = []
        try:
            self.bind(str(path))
            self.fill_reserve()
        except OSError:
            self.close()
            raise

    def fill_reserve(self) -> None:
        """Take the descriptors that closed connections have given back, as far as there are any."""
        with contextlib.suppress(OSError):
            while len(self._reserve) < _NUM_RESERVED:
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS or not self._reserve:
                raise
        os.close(self._reserve.pop())
        try:
            return super().accept()
        except BlockingIOError:  # Linux looks for a descriptor first, even where no connection waits
            self.fill_reserve()
            raise

    def close(self) -> None:
        while self._reserve:
            os.close(self._reserve.pop())
        super().close()


def supervisor_control_path(port: int) -> Path:
    """Return the control socket of the supervisor of a gateway port, for the same user of the same machine.

    Its folder has a random name, since another user could have taken a name that is known beforehand. It is found by
    its owner and mode.
    """
    prefix, name = f"listing-vision-{os.getuid()}-", f"{port}.sock"
    folders = list_private_folders(prefix) or [create_private_folder(prefix, longest_name="65535.sock")]
    paths = [folder / name for folder in folders]
    return next((path for path in paths if path.exists()), paths[0])


def process_control_path(folder: Path, pid: int) -> Path:
    """Return the control socket of a gateway or HTTP process."""
    return folder / f"{pid}.control"


def gateway_socket_address(folder: Path, pid: int) -> str:
    """Return the gRPC address of a gateway process for its supervisor and the HTTP process."""
    return f"unix:{folder}/{pid}.sock"


def open_listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 takes a free one.

    Raises:
        OSError: another process listens there.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(LISTEN_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def format_address(host: str, port: int | str) -> str:
    """Return `HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def reserve_port(host: str, port: int) -> tuple[socket.socket, int]:
    """Bind a port so that it stays ours while gateway processes come and go; return the socket and the port.

    Raises:
        OSError: another process listens there, with or without SO_REUSEPORT.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    try:
        with socket.socket(family, kind, protocol) as exclusive:
            exclusive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            exclusive.bind(address)
            port = exclusive.getsockname()[1]
        shared = socket.socket(family, kind, protocol)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((address[0], port, *address[2:]))
    except OSError as error:
        raise OSError(
            f"cannot listen on {format_address(host, port)}: {error.strerror}; choose another --port"
        ) from error
    return shared, port


def find_free_ports(count: int) -> list[int]:
    """Return ports of this machine that are free now; another process may take one before it is used."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
