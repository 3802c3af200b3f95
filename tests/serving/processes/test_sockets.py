"""The port that a supervisor keeps, and the addresses of its processes."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from serving.processes.sockets import (
    format_address,
    gateway_socket_address,
    is_loopback,
    open_listening_socket,
    process_control_path,
    reserve_port,
    supervisor_control_path,
)


def listen(port: int) -> socket.socket:
    """Listen as a gateway process does, which shares the port."""
    sharing = socket.socket()
    sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sharing.bind(("127.0.0.1", port))
    sharing.listen()
    return sharing


def test_a_reserved_port_is_for_processes_that_share_it_and_no_other_supervisor():
    reservation, port = reserve_port("127.0.0.1", 0)
    with reservation, listen(port), listen(port):
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*; choose another --port"):
            reserve_port("127.0.0.1", port)
        # The reservation itself takes no connection: each reaches a process that listens.
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    reservation, same = reserve_port("127.0.0.1", port)
    reservation.close()
    assert same == port


def test_a_listening_socket_is_for_one_service():
    with open_listening_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(OSError, match="in use"):
            open_listening_socket("127.0.0.1", port)


def test_an_ipv6_address_has_brackets():
    assert format_address("::1", 50051) == "[::1]:50051"
    assert format_address("127.0.0.1", 50051) == "127.0.0.1:50051"
    assert format_address("localhost", 0) == "localhost:0"


def test_processes_have_addresses_of_their_own():
    folder = Path("/run")
    assert gateway_socket_address(folder, 1) != gateway_socket_address(folder, 2)
    assert process_control_path(folder, 1) != process_control_path(folder, 2)
    assert supervisor_control_path(1) != supervisor_control_path(2)
    assert supervisor_control_path(1).parent == supervisor_control_path(2).parent


def test_a_name_that_another_user_has_taken_first_is_not_used(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        taken = [Path(folder) / f"listing-vision-{os.getuid()}{end}" for end in ("", "-", "-aaaaaaaa")]
        for path in taken:
            path.mkdir(mode=0o777)
        found = supervisor_control_path(1)
        assert found.parent not in taken
        assert found.parent.stat().st_mode & 0o777 == 0o700
        assert supervisor_control_path(1) == found
        # Where two supervisors have started at once, each is found by its socket.
        another = Path(folder) / f"listing-vision-{os.getuid()}-zzzzzzzz"
        another.mkdir(mode=0o700)
        (another / "2.sock").touch()
        assert supervisor_control_path(2) == another / "2.sock"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_not_loopback(host):
    assert not is_loopback(host)
