import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serving.http_api.body_limits import BodyLimits
from serving.http_api.errors import HttpRefusal

LIMITS = {"body_limit_bytes": 10, "bodies_limit_bytes": 15}


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


async def call(app, chunks, **headers):
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


def test_all_bodies_in_memory_are_limited_together():
    async def run():
        app, rest = create_app(), asyncio.get_running_loop().create_future()
        slow = asyncio.create_task(call(app, [b"x" * 9, rest]))
        await asyncio.sleep(0)
        refused = await call(app, [b"x" * 9])
        rest.set_result(b"")
        return await slow, refused, await call(app, [b"x" * 9])

    slow, refused, later = asyncio.run(run())
    assert (slow[0], refused[0], later[0]) == (200, 429, 200)
    assert (read_error(refused[2])["reason"], refused[1][b"retry-after"]) == ("TOO_BUSY", b"1")
