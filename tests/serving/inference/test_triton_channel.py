"""How a channel reaches a Triton: past proxies, with its CA and its key."""

import asyncio
import socket
import threading

import grpc
import pytest

from serving.inference.triton import TritonEngine
from serving.inference.triton_channel import TritonAccess
from tests.support.certificates import Authority
from vision.errors import EngineBroken, EngineUnavailable, ListingVisionError


class _Recorder(grpc.aio.ServerInterceptor):
    """Keeps the headers of the calls that arrive."""

    def __init__(self):
        self.headers = []

    async def intercept_service(self, continuation, details):
        self.headers.append(dict(details.invocation_metadata))
        return await continuation(details)


def call_server(access, credentials=None, host="127.0.0.1"):
    """Call a server that knows no method of Triton; return the error and the headers that arrived."""
    recorder = _Recorder()

    async def call():
        server = grpc.aio.server(interceptors=[recorder])
        address = f"{host}:0"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        await server.start()
        engine = TritonEngine(f"{host}:{port}", access=access)
        try:
            await engine.fetch_backend()
        finally:
            await engine.close()
            await server.stop(None)

    with pytest.raises((EngineBroken, EngineUnavailable)) as caught:
        asyncio.run(call())
    return caught.value, recorder.headers


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_of_the_environment_is_not_used(monkeypatch, name):
    asked = []

    def answer(proxy):
        with proxy.accept()[0] as connection:
            asked.append(connection.recv(1000))
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")

    for other in ("no_proxy", "no_grpc_proxy", "http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.delenv(other, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=answer, args=(proxy,), daemon=True).start()
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        error, headers = call_server(None)
    assert isinstance(error, EngineBroken)  # the server has answered that it knows no such method
    assert len(headers) == 1
    assert asked == []


def test_the_key_is_sent_and_the_certificate_is_checked(tmp_path):
    authority, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    certificate, key = authority.issue("triton")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    (tmp_path / "key").write_text("listing-vision=se=cret\n")
    access = TritonAccess(ca=authority.certificate, key_file=tmp_path / "key")
    access.check()
    error, (headers,) = call_server(access, credentials, "localhost")
    assert isinstance(error, EngineBroken)
    assert headers["triton-grpc-protocol-listing-vision"] == "se=cret"

    wrong = TritonAccess(ca=stranger.certificate, key_file=tmp_path / "key")
    error, headers = call_server(wrong, credentials, "localhost")
    assert isinstance(error, EngineUnavailable)
    assert headers == []


@pytest.mark.parametrize("text", ["", "no key", "Upper=case", "two=lines\nof=text", "empty="])
def test_a_file_that_is_no_key_is_refused(tmp_path, text):
    (tmp_path / "key").write_text(text)
    with pytest.raises(ListingVisionError, match="is not one line NAME=VALUE"):
        TritonAccess(key_file=tmp_path / "key").check()


def test_files_that_are_missing_or_no_certificate_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LISTING_VISION_TRITON_CA", str(tmp_path / "ca"))
    monkeypatch.setenv("LISTING_VISION_TRITON_KEY_FILE", str(tmp_path / "key"))
    access = TritonAccess.from_environment()
    with pytest.raises(ListingVisionError, match=r"--triton-key-file \S+key cannot be read: No such file"):
        access.check()
    (tmp_path / "key").write_text("a=b")
    with pytest.raises(ListingVisionError, match=r"--triton-ca \S+ca cannot be read: No such file"):
        access.check()
    (tmp_path / "ca").write_text("no certificate")
    with pytest.raises(ListingVisionError, match="contains no certificate in PEM"):
        access.check()
