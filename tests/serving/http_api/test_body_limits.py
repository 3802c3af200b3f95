import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serving.http_api.body_limits import BodyLimits
from serving.http_api.errors import HttpRefusal

LIMITS = {"body_limit_bytes": 10, "bodies_limit_bytes": 24}


def create_app():
    async def endpoint(request):
        return PlainTextResponse(str(len(await request.body())))

    async def respond(request, error):
        return error.to_response()

    return Starlette(
        routes=[Route("/", endpoint, methods=["POST"])],
        middleware=[Middleware(BodyLimits, **LIMITS)],
        exception_handlers={HttpRefusal: respond},
    )


async def call(app, chunks, address="192.0.2.1", **headers):
    """Status, headers and body of the response to a body in chunks; a chunk may be awaitable."""
    sent, pending = [], list(chunks)

    async def receive():
        chunk = pending.pop(0)
        chunk = chunk if isinstance(chunk, bytes) else await chunk
        return {"type": "http.request", "body": chunk, "more_body": bool(pending)}

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}
    scope["client"] = (address, 1)
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def read_error(body):
    return json.loads(body)["error"]


@pytest.mark.parametrize(("chunks", "status"), [([b"x" * 10], 200), ([b"x" * 10, b"x"], 413)])
def test_a_body_without_a_length_is_read_to_the_limit(chunks, status):
    found = asyncio.run(call(create_app(), chunks))
    assert found[0] == status
    if status == 413:
        assert read_error(found[2])["reason"] == "REQUEST_TOO_LARGE"
        assert read_error(found[2])["metadata"] == {"limit": "10"}


@pytest.mark.parametrize("length", ["11", "9" * 5000])
def test_a_body_that_is_too_long_by_its_header_is_not_read(length):
    status, _, body = asyncio.run(call(create_app(), [], content_length=length))
    assert (status, read_error(body)["metadata"]["value"]) == (413, length)


def test_a_body_with_two_kinds_of_length_is_refused():
    status, headers, body = asyncio.run(call(create_app(), [], content_length="1", transfer_encoding="chunked"))
    assert (status, headers[b"connection"], read_error(body)["reason"]) == (400, b"close", "BODY_UNREADABLE")


async def hold(app, address):
    """A call whose body has arrived in part, and what its rest is to be set on."""
    rest = asyncio.get_running_loop().create_future()
    slow = asyncio.create_task(call(app, [b"x" * 9, rest], address=address))
    await asyncio.sleep(0)
    return slow, rest


def test_bodies_in_memory_are_limited_for_each_address():
    async def run():
        app = create_app()
        slow, rest = await hold(app, "2001:db8::1")
        refused = await call(app, [b"x" * 9], address="2001:db8::2")
        other = await call(app, [b"x" * 9], address="192.0.2.9")
        rest.set_result(b"")
        return await slow, refused, other, await call(app, [b"x" * 9], address="2001:db8::2")

    slow, refused, other, later = asyncio.run(run())
    assert (slow[0], refused[0], other[0], later[0]) == (200, 429, 200, 200)
    assert (read_error(refused[2])["reason"], refused[1][b"retry-after"]) == ("TOO_BUSY", b"1")


def test_all_bodies_in_memory_are_limited_together():
    async def run():
        app = create_app()
        slow = [await hold(app, f"192.0.2.{number}") for number in range(2)]
        refused = await call(app, [b"x" * 9], address="192.0.2.9")
        for _, rest in slow:
            rest.set_result(b"")
        return refused, [await task for task, _ in slow]

    refused, others = asyncio.run(run())
    assert refused[0] == 429
    assert [one[0] for one in others] == [200, 200]
