"""Photos by URI: a real HTTPS server on loopback, which only the resolver of these tests lets anybody reach."""

import asyncio
import contextlib
import logging
import socket
import ssl

import grpc
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import reasons_pb2
from serving.api.status import Refusal
from serving.gateway import photo_fetch
from serving.gateway.photo_fetch import PhotoFetcher, PublicResolver, check_prefixes
from tests.support.certificates import Authority
from tests.support.gateway import PHOTO, open_stub, run_gateway
from vision.errors import ListingVisionError, PhotoFetchTimedOut, PhotoNotFetched, PhotoTooManyBytes

PREFIX = "https://localhost/photos/"
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "photos")


class LoopbackResolver(AbstractResolver):
    """What DNS would say, but for the address and the port; counts."""

    def __init__(self, port):
        self.port, self.asked = port, []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        return [
            {"hostname": host, "host": "127.0.0.1", "port": self.port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        ]

    async def close(self):
        pass


async def send_redirect(request):
    places = {
        "once": PREFIX + "a.jpg",
        "away": "https://localhost/secret/a.jpg",
        "plain": "http://localhost/photos/a.jpg",
        "metadata": "https://169.254.169.254/latest/meta-data/",
        "round": PREFIX + "to/round",
        "nowhere": "",
    }
    return web.Response(status=302, headers={"Location": places[request.match_info["where"]]})


async def send_slowly(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.05)


async def large(request):
    return web.Response(body=b"x" * (MAX_BYTES + 1))


async def send_endless(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x" * 10_000)


async def send_status(request):
    return web.Response(status=int(request.match_info["status"]))


async def cut_body(request):
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"x")
    request.transport.abort()
    return response


async def abort_connection(request):
    request.transport.abort()


class Server:
    def __init__(self):
        self.seen = []

    async def photo(self, request):
        self.seen.append(dict(request.headers))
        return web.Response(body=PHOTO)


@contextlib.asynccontextmanager
async def serving(authority):
    """A server, and what is needed to reach it."""
    server = Server()
    app = web.Application()
    app.router.add_get("/photos/a.jpg", server.photo)
    app.router.add_get("/secret/a.jpg", server.photo)
    app.router.add_get("/photos/to/{where}", send_redirect)
    app.router.add_get("/photos/drip", send_slowly)
    app.router.add_get("/photos/endless", send_endless)
    app.router.add_get("/photos/large", large)
    app.router.add_get("/photos/status/{status}", send_status)
    app.router.add_get("/photos/cut", cut_body)
    app.router.add_get("/photos/abort", abort_connection)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server"))
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    resolver = LoopbackResolver(runner.addresses[0][1])
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    uris = PhotoFetcher([PREFIX], max_bytes=MAX_BYTES, resolver=resolver, ssl_context=trust)
    try:
        yield server, resolver, uris
    finally:
        await uris.close()
        await runner.cleanup()


def fetch_photo(authority, path):
    async def run():
        async with serving(authority) as (server, resolver, uris):
            uris.check({"photos[0].uri": PREFIX + path})
            return await uris.fetch(PREFIX + path), server.seen, resolver.asked

    return asyncio.run(run())


def test_a_photo_is_fetched_and_nothing_told_but_its_name(authority, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    found, (headers,), asked = fetch_photo(authority, "a.jpg")
    assert found == PHOTO
    assert not {"Authorization", "Cookie", "Referer"} & set(headers)
    assert asked == ["localhost"]


def test_a_redirect_below_the_prefix_is_followed(authority):
    assert fetch_photo(authority, "to/once")[0] == PHOTO


@pytest.mark.parametrize("where", ["away", "plain", "metadata", "nowhere"])
def test_a_redirect_to_anywhere_else_is_not(authority, where):
    found, seen, asked = fetch_photo(authority, f"to/{where}")
    assert isinstance(found, PhotoNotFetched)
    assert not seen
    assert asked == ["localhost"]


def test_a_redirect_in_a_circle_ends(authority):
    assert "more than 3 times" in str(fetch_photo(authority, "to/round")[0])


@pytest.mark.parametrize("path", ["large", "endless"])
def test_what_is_too_long_is_left_whether_it_says_so_or_not(authority, path):
    assert isinstance(fetch_photo(authority, path)[0], PhotoTooManyBytes)


def test_what_drips_is_left_in_time(authority, monkeypatch):
    monkeypatch.setattr("serving.gateway.photo_fetch.FETCH_TIMEOUT_S", 0.5)
    found, _, _ = fetch_photo(authority, "drip")
    assert isinstance(found, PhotoFetchTimedOut)
    assert "did not come within 0.5 s" in str(found)


@pytest.mark.parametrize("path", ["status/408", "status/429", "status/500", "status/503", "cut", "abort"])
def test_a_server_that_fails_is_not_the_photos_fault(authority, path):
    assert isinstance(fetch_photo(authority, path)[0], PhotoFetchTimedOut)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_photo_that_its_server_refuses_is_not_fetched(authority, status):
    assert isinstance(fetch_photo(authority, f"status/{status}")[0], PhotoNotFetched)


class FailingResolver(LoopbackResolver):
    def __init__(self, error):
        super().__init__(0)
        self.error = error

    async def resolve(self, host, port=0, family=socket.AF_INET):
        raise self.error


@pytest.mark.parametrize(
    ("resolver", "expected"),
    [
        (FailingResolver(socket.gaierror(socket.EAI_AGAIN, "later")), PhotoFetchTimedOut),
        (FailingResolver(socket.gaierror(socket.EAI_NONAME, "unknown")), PhotoNotFetched),
        (LoopbackResolver(1), PhotoFetchTimedOut),
        (PublicResolver(), PhotoNotFetched),  # localhost is not public
    ],
    ids=["the name server has no time", "no such name", "connection refused", "not public"],
)
def test_a_server_that_cannot_be_reached_may_be_later_but_a_name_that_leads_nowhere_will_not(resolver, expected):
    async def run():
        photo_fetcher = PhotoFetcher([PREFIX], max_bytes=MAX_BYTES, resolver=resolver)
        try:
            return await photo_fetcher.fetch(PREFIX + "a.jpg")
        finally:
            await photo_fetcher.close()

    assert type(asyncio.run(run())) is expected


class StoreError(Exception):
    """What gcsfs raises, with the status of the response."""

    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("gone"), PhotoNotFetched),
        (PermissionError("not yours"), PhotoNotFetched),
        (StoreError(400), PhotoNotFetched),
        (StoreError(503), PhotoFetchTimedOut),
        (StoreError(429), PhotoFetchTimedOut),
        (ConnectionResetError("reset"), PhotoFetchTimedOut),
        (TimeoutError("late"), PhotoFetchTimedOut),
    ],
    ids=str,
)
def test_errors_of_object_stores_are_told_apart(monkeypatch, error, expected):
    class Store:
        def info(self, uri):
            raise error

    monkeypatch.setattr(photo_fetch, "parse_prefix", photo_fetch.parse_uri)
    monkeypatch.setattr("fsspec.filesystem", lambda scheme: Store())

    async def run():
        photo_fetcher = PhotoFetcher(["gs://bucket/listings/"], max_bytes=1)
        try:
            return await photo_fetcher.fetch("gs://bucket/listings/a.jpg")
        finally:
            await photo_fetcher.close()

    assert type(asyncio.run(run())) is expected


SIGNED = "photos/a%20b%2B(1)~%C3%A9.jpg?X-Amz-Credential=AK%2F2026%2fus&sig=a%2Bb+c%3d&e=%7E'*,%25"


@pytest.mark.parametrize("scheme_and_host", ["https://localhost/", "HTTPS://LocalHost/", "https://localhost:443/"])
def test_the_request_line_has_the_bytes_of_the_uri(authority, scheme_and_host):
    lines = []

    async def answer(reader, writer):
        lines.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        await writer.drain()
        writer.close()

    async def run():
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*authority.issue("server"))
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        photo_fetcher = PhotoFetcher(
            [PREFIX],
            max_bytes=MAX_BYTES,
            resolver=LoopbackResolver(server.sockets[0].getsockname()[1]),
            ssl_context=ssl.create_default_context(cafile=str(authority.certificate)),
        )
        try:
            photo_fetcher.check({0: scheme_and_host + SIGNED})
            return await photo_fetcher.fetch(scheme_and_host + SIGNED)
        finally:
            await photo_fetcher.close()
            server.close()

    assert asyncio.run(run()) == b"x"
    assert lines == [f"GET /{SIGNED} HTTP/1.1\r\n".encode()]


def test_what_is_not_there_is_told_without_its_place(authority):
    found, _, _ = fetch_photo(authority, "gone.jpg?token=secret")
    assert str(found) == "the photo's server answered 404"


def test_a_server_without_the_names_certificate_is_not_believed(authority):
    async def run():
        async with serving(authority) as (_, resolver, _):
            uris = PhotoFetcher([PREFIX], max_bytes=MAX_BYTES, resolver=resolver)
            try:
                return await uris.fetch(PREFIX + "a.jpg")
            finally:
                await uris.close()

    assert "ClientConnectorCertificateError" in str(asyncio.run(run()))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "224.0.0.1", "100.64.0.1", "::1", "::", "fe80::1%eth0",
     "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "ff02::1", "64:ff9b::7f00:1",
     "64:ff9b::808:808", "64:ff9b:1::1", "::127.0.0.1", "::8.8.8.8", "fec0::1", "2001::1", "168.63.129.16",
     "::ffff:168.63.129.16", "2002:a83f:8110::", "100.100.100.200", "fd00:ec2::254", "192.88.99.1", "255.255.255.255",
     "192.0.0.192"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_nobodys(address):
    assert not PublicResolver().is_public(address)


def test_public_addresses_are_and_a_name_at_both_is_refused(monkeypatch):
    assert PublicResolver().is_public("8.8.8.8")
    assert PublicResolver().is_public("2001:4860:4860::8888")

    async def rebinding():
        loop = asyncio.get_running_loop()

        async def both(host, port, **_):
            addresses = ("8.8.8.8", "127.0.0.1")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(loop, "getaddrinfo", both)
        with pytest.raises(OSError, match="not public"):
            await PublicResolver().resolve("photos.example", 443)

    asyncio.run(rebinding())


OUTSIDE = [
    "http://photos.example/listings/a.jpg",
    "https://photos.example/other/a.jpg",
    "https://photos.example.evil.com/listings/a.jpg",
    "https://photos.example@evil.com/listings/a.jpg",
    "https://evil.com#photos.example/listings/a.jpg",
    "https://evil.com\\@photos.example/listings/a.jpg",
    "https://photos.example:8443/listings/a.jpg",
    "https://photos.example:x/listings/a.jpg",
    "https://photos.example./listings/a.jpg",
    "https://photos.example/listings/../secret",
    "https://photos.example/listings/./../secret",
    "https://photos.example/listings/%2e%2e/secret",
    "https://photos.example/listings/..%2fsecret",
    "https://photos.example/listings/..;/secret",
    "https://photos.example/listings/..;a=b/secret",
    "https://photos.example/listings/.;/secret",
    "https://photos.example/listings/..%3b/secret",
    "https://photos.example/listings/.%2e/secret",
    "https://photos.example/listings/%2E./secret",
    "https://photos.example/listings/%252e%252e/secret",
    "https://photos.example/listings/..%5csecret",
    "https://photos.example/listings/a%0d%0aHost:evil",
    "https://photos.example/listings/a%.jpg",
    "https://photos.example/listings/a%4.jpg",
    "https://photos.example/listings/a%00.jpg",
    "https://photos.example/listings/a b.jpg",
    "https://photos.example/listings/a.jpg\r\nHost: evil",
    "https://photos．example/listings/a.jpg",
    "https://ｐhotos.example/listings/a.jpg",
    "https://[::1]/listings/a.jpg",
    "https://2130706433/listings/a.jpg",
    "//photos.example/listings/a.jpg",
    "file:///etc/passwd",
    "gs://bucket/secret/a.jpg",
    "gs://bucket2/listings/a.jpg",
    "s3://bucket/listings/a.jpg",
    "https://photos.example/listings/" + "a" * 2000,
    "",
]


@pytest.mark.parametrize("uri", OUTSIDE)
def test_whatever_is_not_plainly_below_a_prefix_is_refused(uri, monkeypatch):
    # Without the packages of object stores.
    monkeypatch.setattr(photo_fetch, "parse_prefix", photo_fetch.parse_uri)

    async def run():
        uris = PhotoFetcher(["https://photos.example/listings/", "gs://bucket/listings/"], max_bytes=1)
        try:
            uris.check(
                {"a": "https://photos.example/listings/a.jpg", "b": "https://PHOTOS.example:443/listings/b.jpg?w=1"}
            )
            uris.check({"a": "gs://bucket/listings/a/b.jpg"})
            with pytest.raises(Refusal) as refused:
                uris.check({"photos[0].uri": "https://photos.example/listings/a.jpg", "photos[3].uri": uri})
            return refused.value
        finally:
            await uris.close()

    refused = asyncio.run(run())
    assert (refused.reason, [one.field for one in refused.violations]) == ("PHOTO_URI_NOT_ALLOWED", ["photos[3].uri"])


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("http://photos.example/", "give https://HOST/PATH/"),
        ("https://photos.example/listings", "ending in a slash"),
        ("https://127.0.0.1/photos/", "give a name, not an address"),
        ("https://127.1/photos/", "give a name, not an address"),
        ("https://photos.example/?a=/", "give https://HOST/PATH/"),
    ],
)
def test_wrong_prefixes_are_told_at_the_start(prefix, said):
    with pytest.raises(ListingVisionError, match=said):
        check_prefixes([prefix])


def classify_uris(bundle, authority, caplog, *photos, allowed=True):
    async def run():
        async with (
            serving(authority) as (server, _, uris),
            run_gateway(bundle, photo_fetcher=uris if allowed else None) as (gateway_server, _),
            open_stub(gateway_server) as stub,
        ):
            with caplog.at_level(logging.DEBUG):
                try:
                    request = pb.ClassifyListingRequest(listing_id="a", photos=photos)
                    return await stub.ClassifyListing(request), server.seen
                except grpc.aio.AioRpcError as error:
                    return error, server.seen

    return asyncio.run(run())


def test_a_listing_is_answered_from_what_could_be_fetched(bundle, authority, caplog):
    photos = [
        pb.Photo(uri=PREFIX + "gone.jpg?token=secret"),
        pb.Photo(content=PHOTO),
        pb.Photo(uri=PREFIX + "a.jpg"),
        pb.Photo(content=b"text"),
    ]
    answer, _ = classify_uris(bundle, authority, caplog, *photos)
    reasons = [photo.error.reason for photo in answer.photos]
    assert reasons == [reasons_pb2.PHOTO_NOT_FETCHED, 0, 0, reasons_pb2.PHOTO_NOT_AN_IMAGE]
    assert answer.photos[1].recognition == answer.photos[2].recognition
    assert [pb.Stage.Name(one.stage) for one in answer.stage_times] == [
        "STAGE_FETCH",
        "STAGE_DECODE",
        "STAGE_MODEL",
        "STAGE_DECISION",
    ]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("serving")]
    assert not any("secret" in text or "gone.jpg" in text for text in ours)


def test_where_none_can_be_fetched_each_is_named(bundle, authority, caplog):
    error, _ = classify_uris(bundle, authority, caplog, pb.Photo(uri=PREFIX + "gone.jpg"))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "none of the 1 photos can be used: PHOTO_NOT_FETCHED"
    (violation,) = read_error_details(error).violations
    assert (violation.field, violation.reason) == ("photos[0].uri", "PHOTO_NOT_FETCHED")


@pytest.mark.parametrize("allowed", [True, False])
def test_one_uri_outside_the_list_and_nothing_is_fetched(bundle, authority, caplog, allowed):
    photos = [pb.Photo(uri=PREFIX + "a.jpg"), pb.Photo(uri="https://localhost/secret/a.jpg")]
    error, seen = classify_uris(bundle, authority, caplog, *photos, allowed=allowed)
    code = grpc.StatusCode.INVALID_ARGUMENT if allowed else grpc.StatusCode.UNIMPLEMENTED
    assert error.code() == code
    assert ("photos[1].uri: it is below none" if allowed else "fetches no photos; send their bytes") in error.details()
    assert not seen
