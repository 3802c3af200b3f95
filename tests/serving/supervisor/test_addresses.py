"""A service on IPv6, and its log lines."""

import contextlib
import json
import os
import re
import socket

import pytest

from listing_vision_client import ListingVisionClient
from tests.support.certificates import Authority
from tests.support.serving_process import PHOTO


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 address of loopback")
@pytest.mark.parametrize(("host", "others"), [("::1", []), ("[::1]", []), ("::", ["127.0.0.1", "[::1]"])])
def test_a_service_listens_on_ipv6(bundle, start_serving, tmp_path, host, others):
    options = ("--in-process", "--host", host, "--insecure", "--status-port", "0", "--workers", "2")
    served = start_serving(bundle.folder, tmp_path / "serve.log", *options)
    bracketed = f"[{host.strip('[]')}]"
    port = re.fullmatch(rf"{re.escape(bracketed)}:(\d+)", served.address).group(1)
    for reachable in others or [bracketed]:
        with ListingVisionClient(f"{reachable}:{port}") as client:
            assert client.classify([PHOTO], timeout_s=20).category_path
    assert f"metrics and health at http://{bracketed}:" in served.log
    assert served.fetch_status("/readyz") == (200, "ready\n")
    assert len(set(re.findall(r"gateway process \d+ serves on (\S+)", served.log))) == 1
    assert served.stop() == 0


def test_every_line_of_a_json_log_is_json(bundle, start_serving, tmp_path, monkeypatch):
    monkeypatch.setenv("LISTING_VISION_LOG_FORMAT", "json")
    certificate, key = Authority(tmp_path, "ca").issue("server")
    tls = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", *tls)
    host, _, port = served.address.rpartition(":")
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(os.urandom(500))  # gRPC logs a failed handshake
            connection.recv(1000)
    assert served.stop() == 0
    lines = [json.loads(line) for line in served.log.splitlines()]
    assert lines[-1]["message"] == "stopped"
