"""TLS, tokens and quotas over real connections, with certificates made for the test."""

import asyncio
import contextlib
import hashlib
import json
import subprocess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api.status import Refusal
from serving.auth.quota import PhotoQuota
from serving.auth.static_tokens import StaticTokenVerifier
from serving.auth.tls import ServerTls, is_loopback
from serving.client import Access, AsyncListingVisionClient, CallFailed, ClientTls, ListingVisionClient
from serving.config import ServeOptions
from serving.gateway.server import GatewayServer
from serving.gateway.service import CLASSIFY_METHOD
from serving.protocol import listing_vision_pb2 as pb
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from tests.support.helpers import create_scene, encode_image
from tests.support.waiting import wait_until
from vision.errors import ListingVisionError

PHOTO = encode_image(create_scene(120, 90))


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Authority:
    """Signs certificates for localhost."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.certificate, self._key = folder, folder / f"{name}-ca.pem", folder / f"{name}-ca.key"
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2)
        openssl(*new, "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate)

    def issue(self, name: str) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extra = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extra.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl(*new, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signing = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", 2, "-extfile", extra)
        openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
        return certificate, key


@contextlib.asynccontextmanager
async def run_gateway(bundle, **options):
    server = GatewayServer(ServeOptions(bundle=bundle.folder, port=0, in_process=True, isolate=False, **options))
    await server.start()
    try:
        yield server, f"localhost:{server.port}"
    finally:
        await server.stop()


async def classify_status(address: str, access: Access, *, photos: int = 1) -> str:
    """`answered`, or the code and the words of the failure."""
    async with AsyncListingVisionClient(address, access) as client:
        try:
            await client.classify([PHOTO] * photos, timeout_s=10)
        except CallFailed as failed:
            return f"{failed.code.name} {failed.reason} {failed.message}"
        return "answered"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


def test_tls_is_spoken_and_plain_text_and_strangers_are_not(bundle, authority, tmp_path):
    certificate, key = authority.issue("server")
    stranger = Authority(tmp_path, "stranger")

    async def calls():
        async with run_gateway(bundle, tls_certificate=certificate, tls_key=key) as (_, address):
            return [
                await classify_status(address, Access(tls=ClientTls(ca=authority.certificate))),
                await classify_status(address, Access(tls=ClientTls(ca=stranger.certificate))),
                await classify_status(address, Access()),
            ]

    ours, strangers, plain = asyncio.run(calls())
    assert ours == "answered"
    assert strangers.startswith("UNAVAILABLE")
    assert plain.startswith("UNAVAILABLE")


def test_callers_must_show_a_certificate_where_one_is_asked_for(bundle, authority, tmp_path):
    certificate, key = authority.issue("server-mtls")
    ours, ours_key = authority.issue("caller")
    foreign, foreign_key = Authority(tmp_path, "stranger").issue("caller")
    options = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.certificate}

    async def calls():
        async with run_gateway(bundle, **options) as (_, address):
            ca = authority.certificate
            return [
                await classify_status(address, Access(tls=ClientTls(ca=ca, certificate=ours, key=ours_key))),
                await classify_status(address, Access(tls=ClientTls(ca=ca, certificate=foreign, key=foreign_key))),
                await classify_status(address, Access(tls=ClientTls(ca=ca))),
            ]

    answered, foreigner, nameless = asyncio.run(calls())
    assert answered == "answered"
    assert foreigner.startswith("UNAVAILABLE")
    assert nameless.startswith("UNAVAILABLE")


def test_a_new_certificate_holds_without_a_restart_and_a_broken_one_never(bundle, authority, tmp_path, caplog):
    other = Authority(tmp_path / "other", "other")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"

    def put(issued) -> None:
        for path, source in zip((certificate, key), issued, strict=True):
            path.write_bytes(source.read_bytes())

    put(authority.issue("first"))
    by_ours, by_other = (Access(tls=ClientTls(ca=a.certificate)) for a in (authority, other))

    async def calls():
        async with run_gateway(bundle, tls_certificate=certificate, tls_key=key) as (_, address):
            found = [await classify_status(address, by_ours)]
            whole = certificate.read_bytes()
            certificate.write_bytes(whole[: len(whole) // 2])
            await asyncio.sleep(1.1)  # files are looked at once a second at most
            found.append(await classify_status(address, by_ours))
            put(other.issue("second"))
            await asyncio.sleep(1.1)
            return [*found, await classify_status(address, by_other), await classify_status(address, by_ours)]

    first, while_broken, second, old_trust = asyncio.run(calls())
    assert (first, while_broken, second) == ("answered",) * 3
    assert old_trust.startswith("UNAVAILABLE")
    assert "cannot be used, the old one stays" in caplog.text


def test_a_certificate_that_is_none_is_refused_at_the_start(authority, tmp_path):
    certificate, _ = authority.issue("one")
    _, key = authority.issue("two")
    with pytest.raises(ListingVisionError, match="cannot be used"):
        ServerTls(certificate=certificate, key=key).create_credentials()
    with pytest.raises(ListingVisionError, match="cannot be used"):
        ServerTls(certificate=tmp_path / "missing.pem", key=key).create_credentials()


def token_file(path: Path, **tokens: str) -> Path:
    lines = [f"{name} {hashlib.sha256(token.encode()).hexdigest()}" for name, token in tokens.items()]
    path.write_text("\n".join(["# who may call", *lines, ""]))
    return path


def test_whoever_has_no_token_learns_nothing_and_sends_no_photo(bundle, tmp_path):
    tokens = token_file(tmp_path / "tokens", upload="secret-1", backfill="secret-2")

    async def calls():
        async with run_gateway(bundle, tokens=tokens) as (_, address):
            found = [
                await classify_status(address, Access(token="secret-1")),
                await classify_status(address, Access(token="secret-2")),
                await classify_status(address, Access(token="secret-3")),
                await classify_status(address, Access()),
            ]
            async with grpc.aio.insecure_channel(address) as channel:
                # The call is refused although no message was sent.
                call = channel.stream_unary(CLASSIFY_METHOD)(timeout=10)
                found.append((await call.code()).name)
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                found.append(health.status)
            return found

    *good, wrong, none, unread, health = asyncio.run(calls())
    assert good == ["answered", "answered"]
    assert wrong == none == "UNAUTHENTICATED UNAUTHENTICATED unauthenticated"
    assert unread == "UNAUTHENTICATED"
    assert health == health_pb2.HealthCheckResponse.SERVING


def test_tokens_are_read_again_and_a_broken_file_changes_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("serving.auth.file_watcher.CHECK_INTERVAL_S", 0.0)
    path = token_file(tmp_path / "tokens", upload="one")
    tokens = StaticTokenVerifier(path)

    def caller(token):
        return asyncio.run(tokens.identify_caller(token))

    assert caller("one") == "upload"
    token_file(path, upload="another", backfill="two")
    assert (caller("one"), caller("another"), caller("two")) == (None, "upload", "backfill")
    path.write_text("upload not-a-hash\n")
    assert caller("two") == "backfill"
    assert "line 1: not a name and a SHA-256 in hex; the old tokens stay" in caplog.text
    path.unlink()
    assert caller("two") == "backfill"


@pytest.mark.parametrize("text", ["", "# nobody\n", "name\n", "name 1234\n", "name " + "g" * 64])
def test_a_token_file_that_names_nobody_is_refused(tmp_path, text):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ListingVisionError, match="token file"):
        StaticTokenVerifier(path)


def test_each_caller_has_a_quota_of_its_own(bundle, tmp_path):
    tokens = token_file(tmp_path / "tokens", upload="secret-1", backfill="secret-2")

    async def calls():
        # A burst of five photos, and hardly any after it.
        async with run_gateway(bundle, tokens=tokens, quota_photos_per_s=1.0) as (server, address):
            server._gateway._quotas._clock = lambda: 0.0
            one, two = Access(token="secret-1"), Access(token="secret-2")
            return [
                await classify_status(address, one, photos=3),
                await classify_status(address, one, photos=2),
                await classify_status(address, one),
                await classify_status(address, two, photos=5),
                await classify_status(address, two),
            ]

    first, second, third, other, last = asyncio.run(calls())
    assert (first, second, other) == ("answered",) * 3
    assert third.startswith("RESOURCE_EXHAUSTED QUOTA_EXCEEDED caller 'upload' may send 1 photos a second")
    assert last.startswith("RESOURCE_EXHAUSTED QUOTA_EXCEEDED caller 'backfill'")


def test_a_quota_fills_up_again_and_never_beyond_its_burst():
    now = [0.0]
    quotas = PhotoQuota(2.0, clock=lambda: now[0])
    quotas.consume("a", 10)
    with pytest.raises(Refusal) as caught:
        quotas.consume("a", 4)
    assert caught.value.retry_after_s == pytest.approx(2.0)
    now[0] = 2.0
    quotas.consume("a", 4)
    now[0] = 1000.0
    quotas.consume("a", 20)  # more than the burst, which is whole
    with pytest.raises(Refusal):
        quotas.consume("a", 1)


def test_callers_whose_quota_is_whole_again_are_forgotten(monkeypatch):
    monkeypatch.setattr(PhotoQuota, "MAX_TRACKED_CALLERS", 3)
    now = [0.0]
    quotas = PhotoQuota(2.0, clock=lambda: now[0])
    for name in "abc":
        quotas.consume(name, 10)
    now[0] = 3.0
    quotas.consume("d", 10)
    assert len(quotas._buckets) == 4  # none is whole: the least of it is refused
    with pytest.raises(Refusal):
        quotas.consume("a", 10)
    now[0] = 5.0
    quotas.consume("e", 1)
    assert set(quotas._buckets) == {"d", "e"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_not_loopback(host):
    assert not is_loopback(host)


def test_plain_text_beyond_loopback_is_refused_unless_told(bundle, start_serving, tmp_path):
    with pytest.raises(AssertionError, match=r"refusing to listen on 0\.0\.0\.0 in plain text: give --tls-certificate"):
        start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--host", "0.0.0.0")
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--host", "0.0.0.0", "--insecure")
    assert served.stop() == 0


def test_the_whole_tree_speaks_tls_and_is_found_ready(bundle, start_serving, authority, tmp_path):
    certificate, key = authority.issue("tree")
    tokens = token_file(tmp_path / "tokens", upload="secret-1")
    options = ("--in-process", "--workers", "2", "--status-port", "0", "--host", "127.0.0.1")
    served = start_serving(
        bundle.folder,
        tmp_path / "serve.log",
        *options,
        *("--tls-certificate", str(certificate), "--tls-key", str(key), "--tokens", str(tokens)),
    )
    wait_until(lambda: served.fetch_status("/readyz") == (200, "ready\n"), "ready")
    access = Access(tls=ClientTls(ca=authority.certificate), token="secret-1")
    with ListingVisionClient(served.address, access) as client:
        assert client.classify([PHOTO]).category_path
    assert "secret-1" not in served.log
    assert served.stop() == 0


def test_access_comes_from_the_environment(monkeypatch, tmp_path):
    assert Access.from_environment() == Access()
    monkeypatch.setenv("LISTING_VISION_TOKEN", "t")
    monkeypatch.setenv("LISTING_VISION_CA", str(tmp_path / "ca.pem"))
    assert Access.from_environment() == Access(tls=ClientTls(ca=tmp_path / "ca.pem"), token="t")
    assert Access.from_environment().metadata == [("authorization", "Bearer t")]
    monkeypatch.delenv("LISTING_VISION_CA")
    monkeypatch.setenv("LISTING_VISION_TLS", "1")
    assert Access.from_environment().tls == ClientTls()


def test_logs_as_json_name_request_and_caller(bundle, start_serving, tmp_path, monkeypatch):
    monkeypatch.setenv("LISTING_VISION_LOG_FORMAT", "json")
    tokens = token_file(tmp_path / "tokens", upload="secret-1")
    log = tmp_path / "serve.log"
    served = start_serving(bundle.folder, log, "--in-process", "--tokens", str(tokens))
    request = pb.ClassifyListingRequest(listing_id="li\n42", photos=[pb.Photo(content=PHOTO)])
    headers = [("authorization", "Bearer secret-1"), ("x-request-id", "request-7")]
    with grpc.insecure_channel(served.address) as channel:
        pb_grpc.ListingVisionServiceStub(channel).ClassifyListing(request, timeout=20, metadata=headers)
    wait_until(lambda: "request-7" in served.log, "the call is logged")
    lines = [json.loads(line) for line in served.log.splitlines()]
    [line] = [line for line in lines if line.get("request_id")]
    assert (line["request_id"], line["caller"], line["level"]) == ("request-7", "upload", "INFO")
    assert "OK" in line["message"]
    assert set(line) == {"time", "level", "logger", "message", "request_id", "caller"}
    assert "secret-1" not in served.log
