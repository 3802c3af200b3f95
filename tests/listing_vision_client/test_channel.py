import contextlib
import http.server
import json
import socket
import struct
import threading

import grpc
import pytest

from listing_vision_client import Access, CallFailed, ClientTls, ListingVisionClient
from listing_vision_client.channel import build_options, build_target, is_local


def test_access_comes_from_the_environment(monkeypatch, tmp_path):
    assert Access.from_environment() == Access()
    monkeypatch.setenv("LISTING_VISION_TOKEN", "t")
    monkeypatch.setenv("LISTING_VISION_CA", str(tmp_path / "ca.pem"))
    assert Access.from_environment() == Access(tls=ClientTls(ca=tmp_path / "ca.pem"), token="t")
    assert Access.from_environment().metadata == [("authorization", "Bearer t")]
    monkeypatch.delenv("LISTING_VISION_CA")
    monkeypatch.setenv("LISTING_VISION_TLS", "1")
    assert Access.from_environment().tls == ClientTls()


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("vision.example:50051", "vision.example:50051"),
        ("dns:///vision.example:50051", "dns:///vision.example:50051"),
        ("unix:/run/vision", "unix:/run/vision"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["vision.example:50051"], "vision.example:50051"),
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[2001:db8::1]:2"], "ipv6:[::1]:1,[2001:db8::1]:2"),
    ],
)
def test_an_address_or_several_are_one_target(address, target):
    assert build_target(address) == target


@pytest.mark.parametrize("address", ["a.example:1,b.example:2", ["10.0.0.1:1", "[::1]:2"], [], "10.0.0.1:1,b:2"])
def test_addresses_that_grpc_cannot_call_together_are_named(address):
    with pytest.raises(ValueError, match=r"all IPv4 or all IPv6; or give one name that DNS resolves"):
        build_target(address)


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv6:[::1]:1,[::1]:2", True),
        ("unix:/run/vision", True),
        ("unix-abstract:vision", True),
        ("ipv4:127.0.0.1:1,10.0.0.2:2", False),
        ("dns:///vision.example:50051", False),
        ("10.0.0.1:50051", False),
        ("localhost.example:50051", False),
    ],
)
def test_what_is_this_machine_is_known(target, local):
    assert is_local(target) == local
    assert dict(build_options(target, ())).get("grpc.enable_http_proxy") == (0 if local else None)


def test_options_of_the_caller_replace_ours():
    options = dict(build_options("127.0.0.1:1", [("grpc.keepalive_time_ms", 5), ("grpc.primary_user_agent", "shop")]))
    assert (options["grpc.keepalive_time_ms"], options["grpc.primary_user_agent"]) == (5, "shop")
    assert json.loads(options["grpc.service_config"])["loadBalancingConfig"] == [{"round_robin": {}}]


class Proxy:
    """An HTTP proxy that refuses, and counts what it is asked for."""

    def __init__(self):
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_CONNECT(self):
                asked.append(self.path)
                self.send_error(403)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def test_a_proxy_of_the_environment_is_not_used_for_loopback(monkeypatch, fake_service):
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy() as proxy, fake_service() as service:
        monkeypatch.setenv("http_proxy", proxy.url)
        with ListingVisionClient(service.address) as client:
            assert client.get_model().category_count == 7
        assert not proxy.asked
        with (
            ListingVisionClient(service.address, channel_options=[("grpc.enable_http_proxy", 1)]) as client,
            pytest.raises(CallFailed) as caught,
        ):
            client.get_model(timeout_s=5)
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        assert service.address in proxy.asked


class ResettingRelay:
    """Resets its first connection, as a server does that stops listening, and passes on the others."""

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_connections = 0

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.num_connections += 1
            if self.num_connections == 1:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                caller.close()
            else:
                threading.Thread(target=self._relay, args=(caller,), daemon=True).start()

    def _relay(self, caller: socket.socket):
        with caller, socket.create_connection(self._target) as service:
            answers = threading.Thread(target=self._copy, args=(service, caller))
            answers.start()
            self._copy(caller, service)
            answers.join()

    def _copy(self, source: socket.socket, target: socket.socket):
        with contextlib.suppress(OSError):  # one of them is gone
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_a_connection_reset_while_it_is_opened_fails_no_call(fake_service):
    with fake_service() as service, ResettingRelay(service.address) as relay:
        with ListingVisionClient(relay.address) as client:
            assert client.get_model().category_count == 7
        assert relay.num_connections == 2
