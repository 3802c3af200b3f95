"""HTTP/JSON over real sockets, in front of a real gateway with the model in its own process."""

import asyncio
import base64
import hashlib
import http.client
import json
import shutil
import socket
import urllib.error
import urllib.request
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator

from serving.api.limits import REQUEST_LIMIT_BYTES
from serving.http_api.app import create_app
from serving.http_api.body_limits import BODY_LIMIT_BYTES
from serving.processes.control import send_command
from serving.processes.sockets import supervisor_control_path
from tests.conftest import ROOT
from tests.support.helpers import create_scene, encode_image
from vision.bundle import seal_bundle

PHOTO = encode_image(create_scene(200, 150))
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def url(bundle, start_serving, tmp_path_factory):
    log = tmp_path_factory.mktemp("http") / "serve.log"
    return start_serving(bundle.folder, log, "--in-process", "--http-port", "0").http_url


@pytest.fixture(scope="module")
def guarded(bundle, start_serving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text(f"shop {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    options = ("--in-process", "--http-port", "0", "--tokens", str(folder / "tokens"), "--quota", "1")
    return start_serving(bundle.folder, folder / "serve.log", *options)


def request_status(url, body=None, content_type="application/json", **headers):
    """Status, headers and JSON (or text) of an answer."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    request = urllib.request.Request(url, body, {"Content-Type": content_type, **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, found, content = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, found, content = error.code, error.headers, error.read()
    is_json = found["Content-Type"].startswith("application/json")
    return status, found, json.loads(content) if is_json else content.decode()


def form(*photos, **fields):
    boundary = b"boundary-of-the-tests"
    parts = [b'Content-Disposition: form-data; name="photos"; filename="p.jpg"\r\n\r\n' + photo for photo in photos]
    parts += [f'Content-Disposition: form-data; name="{k}"\r\n\r\n{v}'.encode() for k, v in fields.items()]
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    return body, f"multipart/form-data; boundary={boundary.decode()}"


def in_json(*photos, **more):
    return {"photos": [{"content": base64.b64encode(photo).decode()} for photo in photos], **more}


def test_json_and_a_form_are_answered_alike(url, bundle):
    status, _, of_json = request_status(
        f"{url}/v1/listings:classify", in_json(PHOTO, b"text", listingId="a", alternativeCount=2)
    )
    assert status == 200
    body, content_type = form(PHOTO, b"text", listing_id="a", alternative_count=2)
    status, headers, of_form = request_status(f"{url}/v1/listings:classify", body, content_type)
    assert status == 200
    for answer in (of_json, of_form):
        assert answer.pop("suggestionId")
        assert {stage["stage"] for stage in answer.pop("stageTimes")} == {
            "STAGE_DECODE",
            "STAGE_MODEL",
            "STAGE_DECISION",
        }
    assert of_form == of_json
    assert of_json["listingId"] == "a"
    assert of_json["model"]["version"] == bundle.info.model_version
    assert of_json["categoryPath"][0]["action"] in {"ACTION_PREFILL", "ACTION_SUGGEST"}
    assert len(of_json["categoryAlternatives"]) == 2
    assert of_json["photos"][1]["error"]["reason"] == "PHOTO_NOT_AN_IMAGE"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_the_model_and_its_names(url, bundle):
    assert request_status(f"{url}/v1/model")[2]["model"]["version"] == bundle.info.model_version
    names = request_status(f"{url}/v1/taxonomy")[2]
    assert [c["categoryId"] for c in names["categories"]] == [c.id for c in bundle.taxonomy.categories]
    assert [c["names"] for c in names["categories"]] == [dict(c.names) for c in bundle.taxonomy.categories]
    assert [b["brandId"] for b in names["brands"]] == [b.id for b in bundle.taxonomy.brands]


def test_names_are_those_of_any_release_that_is_loaded(bundle, other_bundle, start_serving, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(other_bundle.folder, other)
    renamed = replace(other_bundle.taxonomy, version="another")
    renamed.save(other / "taxonomy.json")
    seal_bundle(other, replace(other_bundle.info, taxonomy_version="another"))
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--http-port", "0")
    url, port = served.http_url, int(served.address.rpartition(":")[2])
    mine = bundle.taxonomy.version

    def versions():
        asked_for = [f"{url}/v1/taxonomy", *(f"{url}/v1/taxonomy?taxonomyVersion={v}" for v in (mine, "another"))]
        return [(status, answer.get("taxonomyVersion")) for status, _, answer in map(request_status, asked_for)]

    assert versions() == [(200, mine), (200, mine), (404, None)]
    release = send_command(supervisor_control_path(port), "load", bundle=str(other))
    assert versions() == [(200, mine), (200, mine), (200, "another")]
    send_command(supervisor_control_path(port), "promote", release=release)
    assert versions() == [(200, "another"), (200, mine), (200, "another")]
    assert served.log.count("HTTP at ") == 1  # it was not started again
    unknown = request_status(f"{url}/v1/taxonomy?taxonomyVersion=nowhere")[2]["error"]
    assert unknown["reason"] == "TAXONOMY_UNKNOWN"
    assert "'nowhere' is the version of no loaded release; the serving one has 'another'" in unknown["message"]
    assert served.stop() == 0


def test_a_preview_needs_the_token(guarded):
    url = f"{guarded.http_url}/page/preview"
    status, _, answer = request_status(url, PHOTO, "application/octet-stream")
    assert (status, answer["error"]["reason"]) == (401, "UNAUTHENTICATED")
    headers = {"Content-Type": "application/octet-stream", "Authorization": f"Bearer {TOKEN}"}
    with urllib.request.urlopen(urllib.request.Request(url, PHOTO, headers), timeout=60) as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.read().startswith(b"\xff\xd8")


def test_a_photo_is_explained(url):
    status, _, answer = request_status(
        f"{url}/v1/photos:explain", {"photo": {"content": base64.b64encode(PHOTO).decode()}}
    )
    assert status == 200
    assert len(answer["importances"]) == answer["rowCount"] * answer["columnCount"] == 49
    assert max(map(abs, answer["importances"])) > 0
    assert base64.b64decode(answer["modelInput"]).startswith(b"\xff\xd8")
    status, _, answer = request_status(
        f"{url}/v1/photos:explain", {"photo": {"content": base64.b64encode(b"text").decode()}}
    )
    assert (status, answer["error"]["violations"][0]["field"]) == (400, "photo.content")


BAD = {
    "no JSON": (b"{", "application/json", 400, "BODY_UNREADABLE"),
    "an unknown field": (b'{"photo": 1}', "application/json", 400, "BODY_UNREADABLE"),
    "no photo": (b"{}", "application/json; charset=UTF-8", 400, "NO_PHOTOS"),
    "another charset": (b"{}", "application/json; charset=shift_jis", 415, "CONTENT_TYPE_UNSUPPORTED"),
    "another content type": (b"{}", "text/plain", 415, "CONTENT_TYPE_UNSUPPORTED"),
    "no content type": (b"{}", "", 415, "CONTENT_TYPE_UNSUPPORTED"),
    "a form without a boundary": (b"x", "multipart/form-data", 400, "BODY_UNREADABLE"),
    "a form field that is not known": (*form(PHOTO, colour="red"), 400, "BODY_UNREADABLE"),
    "a number that is none": (*form(PHOTO, alternative_count="two"), 400, "BODY_UNREADABLE"),
    "a number out of range": (*form(PHOTO, alternative_count="21"), 400, "ALTERNATIVE_COUNT_OUT_OF_RANGE"),
    "too many photos": (*form(*[b"x"] * 21), 400, "TOO_MANY_PHOTOS"),
    "far too many photos": (*form(*[b"x"] * 140), 400, "BODY_UNREADABLE"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_named(url, name):
    body, content_type, status, reason = BAD[name]
    found = request_status(f"{url}/v1/listings:classify", body, content_type)
    assert (found[0], found[2]["error"]["reason"]) == (status, reason), found[2]
    assert found[2]["error"]["message"]


def test_damaged_base64_is_refused_and_names_the_photo(url):
    body = in_json(PHOTO, PHOTO)
    body["photos"][1]["content"] = body["photos"][1]["content"][:-8] + "*" * 8
    status, _, answer = request_status(f"{url}/v1/listings:classify", body)
    (violation,) = answer["error"]["violations"]
    assert (status, violation["field"], violation["reason"]) == (400, "photos[1].content", "FIELD_INVALID")


def test_only_classify_takes_a_form(url):
    status, headers, answer = request_status(f"{url}/v1/photos:explain", *form(PHOTO))
    assert (status, answer["error"]["reason"]) == (415, "CONTENT_TYPE_UNSUPPORTED")
    assert headers["Accept-Post"] == "application/json"


@pytest.mark.parametrize("timeout_ms", ["0", "-5", "nan", "soon", "60001", "1_000", "1e3", "\xb2"])
def test_a_timeout_that_is_none_is_refused(url, timeout_ms):
    status, _, answer = request_status(f"{url}/v1/model", **{"x-timeout-ms": timeout_ms})
    assert (status, answer["error"]["reason"]) == (400, "TIMEOUT_OUT_OF_RANGE")
    assert answer["error"]["metadata"] == {"limit": "60000"}


def test_headers_that_grpc_does_not_take_are_dropped(url, guarded):
    for name in ("authorization", "x-request-id", "traceparent"):
        assert request_status(f"{url}/v1/model", **{name: "caf\xe9 \t"})[0] == 200
    status, _, answer = request_status(f"{guarded.http_url}/v1/model", authorization="Bearer caf\xe9")
    assert (status, answer["error"]["reason"]) == (401, "UNAUTHENTICATED")


def test_query_parameters_are_checked(url):
    status, _, answer = request_status(f"{url}/v1/taxonomy?version=1")
    (violation,) = answer["error"]["violations"]
    assert (status, violation["field"], violation["reason"]) == (400, "version", "FIELD_UNKNOWN")
    assert request_status(f"{url}/v1/taxonomy?languageCode=ja")[2]["languageCode"] in ("ja", "en")


def test_too_little_time_is_504_and_what_is_not_served_501(url):
    status, _, answer = request_status(f"{url}/v1/listings:classify", in_json(PHOTO), **{"x-timeout-ms": "1"})
    assert (status, answer["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
    status, _, answer = request_status(f"{url}/v1/outcomes", {"listingId": "a"})
    assert (status, answer["error"]["reason"]) == (501, "OUTCOMES_NOT_RECORDED")


def test_what_is_no_route_has_its_own_status(url):
    for path in ("/v1/nothing", "/v1/model/", "/"):
        status, headers, answer = request_status(f"{url}{path}", b"{}")
        if path == "/":
            assert (status, answer["error"]["reason"]) == (405, "METHOD_NOT_ALLOWED")
            assert headers["Allow"] == "GET, HEAD"
        else:
            assert (status, answer["error"]["status"]) == (404, "NOT_FOUND")
            assert answer["error"]["reason"] == "ROUTE_NOT_FOUND"
    status, headers, answer = request_status(f"{url}/v1/listings:classify")
    assert (status, answer["error"]["reason"], headers["Allow"]) == (405, "METHOD_NOT_ALLOWED", "POST")
    assert headers["X-Content-Type-Options"] == "nosniff"


def send_raw(url, request):
    """Status and JSON of the response to bytes."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


def test_a_body_over_the_limit_is_refused_by_its_header(url):
    request = b"POST /v1/listings:classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    status, answer = send_raw(url, request % (BODY_LIMIT_BYTES + 1))
    assert (status, answer["error"]["reason"]) == (413, "REQUEST_TOO_LARGE")
    assert answer["error"]["metadata"]["limit"] == str(BODY_LIMIT_BYTES)
    assert "send fewer or smaller photos" in answer["error"]["message"]


def test_photos_over_the_limit_of_a_request_are_413_too(url):
    status, _, answer = request_status(f"{url}/v1/listings:classify", *form(*[b"x" * (4 << 20)] * 17))
    assert (status, answer["error"]["reason"]) == (413, "REQUEST_TOO_LARGE")
    assert answer["error"]["metadata"]["limit"] == str(REQUEST_LIMIT_BYTES)


def test_a_body_with_two_kinds_of_length_is_refused(url):
    request = (
        b"POST /v1/outcomes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert send_raw(url, request + b"2\r\n{}\r\n0\r\n\r\n")[0] == 400


def test_other_sites_are_refused(url):
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        status, _, answer = request_status(f"{url}/v1/listings:classify", in_json(PHOTO), **headers)
        assert (status, answer["error"]["reason"]) == (403, "CROSS_SITE_REQUEST")


def test_tokens_and_quotas_are_those_of_the_service(guarded):
    url = guarded.http_url
    for path in ("/v1/model", "/v1/taxonomy"):
        status, headers, answer = request_status(f"{url}{path}")
        assert (status, headers["WWW-Authenticate"], answer["error"]["reason"]) == (401, "Bearer", "UNAUTHENTICATED")
    access = {"Authorization": f"Bearer {TOKEN}"}
    assert request_status(f"{url}/v1/model", **access)[0] == 200
    many = [request_status(f"{url}/v1/listings:classify", in_json(*[PHOTO] * 20), **access) for _ in range(6)]
    refused = next(answer for answer in many if answer[0] == 429)
    assert refused[2]["error"]["reason"] == "QUOTA_EXCEEDED"
    assert int(refused[1]["Retry-After"]) >= 1
    assert refused[2]["error"]["retryDelayMs"] > 0
    # The page and its document are for all to read; they show nothing.
    assert request_status(f"{url}/")[0] == request_status(f"{url}/openapi.json")[0] == 200
    assert TOKEN not in guarded.log


def test_the_document_is_served_and_so_are_its_routes(url):
    document = request_status(f"{url}/openapi.json")[2]
    assert document == json.loads((ROOT / "serving" / "http_api" / "openapi.json").read_text())
    for path, verbs in document["paths"].items():
        for verb in verbs:
            body = b"{}" if verb == "post" else None
            assert request_status(f"{url}{path}", body)[0] not in (404, 405), path


def test_responses_and_errors_are_as_the_document_says(url):
    photo = {"content": base64.b64encode(PHOTO).decode()}
    calls = [
        ("/v1/listings:classify", in_json(PHOTO, b"text")),
        ("/v1/listings:classify", {"photos": []}),
        ("/v1/listings:classify", {"photos": [{"content": "AA*A"}]}),
        ("/v1/photos:explain", {"photo": photo}),
        ("/v1/photos:explain", {"photo": photo, "target": "EXPLANATION_TARGET_BRAND"}),
        ("/v1/outcomes", {"listingId": "a"}),
        ("/v1/model", None),
        ("/v1/taxonomy", None),
        ("/v1/taxonomy?taxonomyVersion=nowhere", None),
    ]
    document = request_status(f"{url}/openapi.json")[2]
    for path, body in calls:
        status, _, answer = request_status(f"{url}{path}", body)
        operation = document["paths"][path.partition("?")[0]]["get" if body is None else "post"]
        schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
        Draft202012Validator({**document, **schema}).validate(answer)


def test_a_call_is_cancelled_when_its_caller_goes():
    class SlowUpstream:
        def __init__(self):
            self.has_begun, self.is_cancelled = asyncio.Event(), False

        async def call(self, method, request, *, timeout_s, metadata):
            self.has_begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.is_cancelled = True
                raise

    async def run():
        upstream, sent = SlowUpstream(), []

        async def receive():
            if not upstream.has_begun.is_set():
                return {"type": "http.request", "body": b"{}", "more_body": False}
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/outcomes", "query_string": b"", "headers": headers}
        await create_app(upstream)(scope, receive, send)
        await asyncio.sleep(0)
        return upstream.is_cancelled

    assert asyncio.run(run())


def test_the_verb_says_what_is_missing(monkeypatch, bundle):
    from serving.supervisor import supervisor
    from vision.errors import ListingVisionError

    monkeypatch.setattr(supervisor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ListingVisionError, match=r"--http-port needs starlette, uvicorn.*listing-vision\[http\]"):
        supervisor.Supervisor(supervisor.ServeOptions(bundle=bundle.folder, http_port=0))
