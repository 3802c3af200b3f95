"""TLS over real connections, with certificates made for the test."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from listing_vision_client import Access, ClientTls, ListingVisionClient
from serving.auth.tls import ServerTls
from tests.support.callers import PHOTO, classify, run_secured_gateway, write_token_file
from tests.support.certificates import Authority
from tests.support.waiting import wait_until
from vision.errors import ListingVisionError


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


def test_tls_is_spoken_and_plain_text_and_strangers_are_not(bundle, authority, tmp_path):
    certificate, key = authority.issue("server")
    stranger = Authority(tmp_path, "stranger")

    async def call():
        async with run_secured_gateway(bundle, tls_certificate=certificate, tls_key=key) as address:
            return [
                await classify(address, Access(tls=ClientTls(ca=authority.certificate))),
                await classify(address, Access(tls=ClientTls(ca=stranger.certificate))),
                await classify(address, Access()),
            ]

    ours, strangers, plain = asyncio.run(call())
    assert ours == "OK"
    assert strangers.startswith("UNAVAILABLE")
    assert plain.startswith("UNAVAILABLE")


def test_callers_must_show_a_certificate_where_one_is_asked_for(bundle, authority, tmp_path):
    certificate, key = authority.issue("server-mtls")
    ours, ours_key = authority.issue("caller")
    foreign, foreign_key = Authority(tmp_path, "stranger").issue("caller")
    options = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.certificate}

    async def call():
        async with run_secured_gateway(bundle, **options) as address:
            ca = authority.certificate
            return [
                await classify(address, Access(tls=ClientTls(ca=ca, certificate=ours, key=ours_key))),
                await classify(address, Access(tls=ClientTls(ca=ca, certificate=foreign, key=foreign_key))),
                await classify(address, Access(tls=ClientTls(ca=ca))),
            ]

    known, foreigner, nameless = asyncio.run(call())
    assert known == "OK"
    assert foreigner.startswith("UNAVAILABLE")
    assert nameless.startswith("UNAVAILABLE")


def test_a_new_certificate_holds_without_a_restart_and_a_broken_one_never(bundle, authority, tmp_path, caplog):
    other = Authority(tmp_path / "other", "other")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"

    def install(issued) -> None:
        for path, source in zip((certificate, key), issued, strict=True):
            path.write_bytes(source.read_bytes())

    install(authority.issue("first"))
    trusts_ours, trusts_other = (Access(tls=ClientTls(ca=a.certificate)) for a in (authority, other))

    async def call():
        async with run_secured_gateway(bundle, tls_certificate=certificate, tls_key=key) as address:
            assert await classify(address, trusts_ours) == "OK"
            whole = certificate.read_bytes()
            certificate.write_bytes(whole[: len(whole) // 2])
            async with asyncio.timeout(60):
                while "cannot be used, the old one stays" not in caplog.text:
                    assert await classify(address, trusts_ours) == "OK"
                assert await classify(address, trusts_ours) == "OK"
                install(other.issue("second"))
                while await classify(address, trusts_other) != "OK":
                    pass
            assert (await classify(address, trusts_ours)).startswith("UNAVAILABLE")

    asyncio.run(call())


def test_an_unusable_certificate_is_refused_at_the_start(authority, tmp_path):
    certificate, _ = authority.issue("one")
    _, key = authority.issue("two")
    with pytest.raises(ListingVisionError, match="cannot be used"):
        ServerTls(certificate=certificate, key=key).create_credentials()
    with pytest.raises(ListingVisionError, match="cannot be used"):
        ServerTls(certificate=tmp_path / "missing.pem", key=key).create_credentials()


DAY = timedelta(days=1)


def read_expiry_s():
    labels = {"certificate": "server"}
    return REGISTRY.get_sample_value("listing_vision_gateway_certificate_expiry_timestamp_seconds", labels)


@pytest.mark.parametrize(
    ("begins", "ends", "warning"),
    [(-2 * DAY, -DAY, "has expired"), (DAY, 2 * DAY, "is not valid before"), (-DAY, DAY, None)],
    ids=["expired", "not yet valid", "valid"],
)
def test_a_certificate_that_is_not_valid_now_is_named_at_the_start(authority, caplog, begins, ends, warning):
    now = datetime.now(UTC).replace(microsecond=0)
    certificate, key = authority.issue_for("dated", now + begins, now + ends)
    with caplog.at_level(logging.WARNING):
        ServerTls(certificate=certificate, key=key).create_credentials()
    assert read_expiry_s() == (now + ends).timestamp()
    if warning:
        assert f"TLS certificate {certificate} {warning}" in caplog.text
    else:
        assert not caplog.text


def test_the_first_certificate_of_a_chain_to_expire_counts(authority, caplog):
    now = datetime.now(UTC).replace(microsecond=0)
    expired, _ = authority.issue_for("intermediate", now - 2 * DAY, now - DAY)
    certificate, key = authority.issue("leaf")
    certificate.write_bytes(certificate.read_bytes() + expired.read_bytes())
    ServerTls(certificate=certificate, key=key).create_credentials()
    assert read_expiry_s() == (now - DAY).timestamp()
    assert "has expired" in caplog.text


def test_a_reloaded_certificate_that_has_expired_is_named(bundle, authority, tmp_path, caplog):
    now = datetime.now(UTC).replace(microsecond=0)
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"

    def install(issued) -> None:
        for path, source in zip((certificate, key), issued, strict=True):
            path.write_bytes(source.read_bytes())

    install(authority.issue("first"))
    access = Access(tls=ClientTls(ca=authority.certificate))

    async def call():
        async with run_secured_gateway(bundle, tls_certificate=certificate, tls_key=key) as address:
            assert await classify(address, access) == "OK"
            assert "has expired" not in caplog.text
            install(authority.issue_for("old", now - 2 * DAY, now - DAY))
            async with asyncio.timeout(60):
                while "has expired" not in caplog.text:
                    await classify(address, access)

    asyncio.run(call())
    assert read_expiry_s() == (now - DAY).timestamp()


def test_plain_text_beyond_loopback_is_refused_unless_told(bundle, start_serving, tmp_path):
    with pytest.raises(AssertionError, match=r"refusing to listen on 0\.0\.0\.0 in plain text: give --tls-certificate"):
        start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--host", "0.0.0.0")
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--host", "0.0.0.0", "--insecure")
    assert served.stop() == 0


def test_the_whole_tree_speaks_tls_and_is_found_ready(bundle, start_serving, authority, tmp_path):
    certificate, key = authority.issue("tree")
    tokens = write_token_file(tmp_path / "tokens", upload="secret-1")
    served = start_serving(
        bundle.folder,
        tmp_path / "serve.log",
        *("--in-process", "--workers", "2", "--status-port", "0", "--host", "127.0.0.1"),
        *("--tls-certificate", str(certificate), "--tls-key", str(key), "--tokens", str(tokens)),
    )
    wait_until(lambda: served.fetch_status("/readyz") == (200, "ready\n"), "ready")
    access = Access(tls=ClientTls(ca=authority.certificate), token="secret-1")
    with ListingVisionClient(served.address, access) as client:
        assert client.classify([PHOTO]).category_path
    assert "secret-1" not in served.log
    assert served.stop() == 0
