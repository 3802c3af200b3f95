"""The snippets of docs/callers.md run as they are printed, and clients in other languages against a real gateway."""

import json
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import grpc
import pytest

from listing_vision_client import ListingVisionClient
from listing_vision_client.channel import build_options
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import reasons_pb2
from tests.conftest import ROOT
from tests.support import toolchains
from tests.support.fake_service import FakeService
from tests.support.helpers import create_scene, encode_image

CALLERS = Path(__file__).parent / "callers"
PHOTO = encode_image(create_scene(200, 150))
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def gateway(bundle, start_serving, tmp_path_factory):
    log = tmp_path_factory.mktemp("callers") / "serve.log"
    return start_serving(bundle.folder, log, "--in-process", "--no-isolate", "--http-port", "0")


@pytest.fixture(scope="module")
def names(gateway):
    """The names of the path that the service suggests for the photo, in Japanese."""
    with ListingVisionClient(gateway.address) as client:
        return [level.name for level in client.classify([PHOTO], language_code="ja").category_path]


@pytest.fixture
def shop(tmp_path):
    """A folder with what the snippets name."""
    (tmp_path / "front.jpg").write_bytes(PHOTO)
    (tmp_path / "protos").mkdir()
    shutil.copy(toolchains.IMAGE, tmp_path / "protos")
    return tmp_path


def address_snippet(code: str, gateway) -> str:
    return code.replace("127.0.0.1:50051", gateway.address).replace("http://127.0.0.1:8080", gateway.http_url)


def list_names(response: dict) -> list[str]:
    return [level["name"] for level in response["categoryPath"]]


def test_curl(gateway, shop, names):
    toolchains.require_programs("curl", debian="curl")
    (code,) = toolchains.read_snippets("curl")
    assert list_names(json.loads(toolchains.run("bash", "-c", address_snippet(code, gateway), cwd=shop))) == names


def test_buf(gateway, shop, names):
    (code,) = toolchains.read_snippets("buf")
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    assert (
        list_names(json.loads(toolchains.run("bash", "-c", address_snippet(code, gateway), cwd=shop, PATH=path)))
        == names
    )


def test_python(gateway, shop, names):
    (code,) = toolchains.read_snippets("Python")
    printed = toolchains.run(sys.executable, "-c", address_snippet(code, gateway), cwd=shop, PYTHONPATH=str(ROOT))
    assert [line.split()[0] for line in printed.splitlines()] == ["suggest"] * len(names)
    assert all(name in line for name, line in zip(names, printed.splitlines(), strict=True))


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """NODE_PATH of gRPC for Node."""
    folder = tmp_path_factory.mktemp("node")
    toolchains.install_node_packages(folder)
    return str(folder / "node_modules")


def test_node(gateway, shop, names, node):
    (code,) = toolchains.read_snippets("Node")
    printed = toolchains.run("node", "-e", address_snippet(code, gateway), cwd=shop, NODE_PATH=node)
    assert all(name in line for name, line in zip(names, printed.splitlines(), strict=True))


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """The folder of a GOPATH with the generated contract, and the environment for `go`."""
    folder = tmp_path_factory.mktemp("go")
    return folder, toolchains.prepare_go(folder)


def build_go(go, name: str, code: str) -> str:
    folder, environment = go
    source = folder / "src" / name
    source.mkdir()
    (source / "main.go").write_text(code)
    toolchains.run("go", "build", "-o", str(folder / "bin" / name), ".", cwd=source, **environment)
    return str(folder / "bin" / name)


@pytest.fixture(scope="module")
def go_client(go):
    return build_go(go, "client", (CALLERS / "client.go").read_text())


def test_go(gateway, shop, names, go):
    code = toolchains.use_old_grpc_go(address_snippet(toolchains.read_snippets("Go")[1], gateway))
    printed = toolchains.run(build_go(go, "snippet", code), cwd=shop)
    assert all(name in line for name, line in zip(names, printed.splitlines(), strict=True))


def test_java(gateway, shop, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("java")
    class_path = toolchains.prepare_java(folder)
    (folder / "src" / "Classify.java").write_text(address_snippet(toolchains.read_snippets("Java")[1], gateway))
    sources = [str(path) for path in (folder / "src").rglob("*.java")]
    toolchains.run("javac", "-nowarn", "-d", "classes", "-cp", class_path, *sources, cwd=folder)
    printed = toolchains.run("java", "-cp", class_path, "Classify", cwd=shop)
    assert all(name in line for name, line in zip(names, printed.splitlines(), strict=True))


def call_from_node(node, command: str, address: str, *photo: str) -> dict:
    script = [str(CALLERS / "client.js"), command, address, str(toolchains.IMAGE), *photo]
    return json.loads(toolchains.run("node", *script, cwd=CALLERS, NODE_PATH=node))


def test_a_client_in_node_is_answered_and_reads_errors(gateway, shop, names, node):
    photo = str(shop / "front.jpg")
    response = call_from_node(node, "unary", gateway.address, photo)
    assert (response["listing_id"], [level["name"] for level in response["category_path"]]) == ("a", names)
    assert response["category_path"][0]["action"] in ("ACTION_PREFILL", "ACTION_SUGGEST")
    results = call_from_node(node, "stream", gateway.address, photo)
    assert results == {"0": "listing-0", "1": "3", "2": "listing-2"}
    error = call_from_node(node, "error", gateway.address)
    assert error["code"] == "INVALID_ARGUMENT"
    assert error["details"]["ErrorInfo"]["reason"] == "NO_USABLE_PHOTO"
    violations = error["details"]["BadRequest"]["fieldViolations"]
    assert [violation["reason"] for violation in violations] == ["PHOTO_EMPTY", "PHOTO_NOT_AN_IMAGE"]


def test_a_client_in_node_retries_a_call_of_megabytes(node):
    with FakeService(UNAVAILABLE, UNAVAILABLE) as service:
        assert call_from_node(node, "retry", service.address)["listing_id"] == "a"
        assert service.num_attempts == 3


def test_a_client_in_go_is_answered_and_reads_errors(gateway, shop, names, go_client):
    def call(command, *photo):
        return json.loads(toolchains.run(go_client, command, gateway.address, *photo, cwd=shop))

    assert call("unary", "front.jpg") == {"listingId": "a", "names": names}
    assert call("stream", "front.jpg") == {"0": "listing-0", "1": "3", "2": "listing-2"}
    error = call("error")
    assert (error["code"], error["reason"], error["metadata"]) == (
        "InvalidArgument",
        "NO_USABLE_PHOTO",
        {"photo_count": "2"},
    )
    assert error["fields"] == ["photos[0].content", "photos[1].content"]


def test_a_client_in_go_retries_a_call_of_megabytes(go_client, shop):
    # grpc-go 1.33, Debian's, retries where this is set; later versions always do.
    with FakeService(UNAVAILABLE, UNAVAILABLE) as service:
        printed = toolchains.run(go_client, "retry", service.address, cwd=shop, GRPC_GO_RETRY="on")
        assert (json.loads(printed), service.num_attempts) == ({"listingId": "a"}, 3)


REASONS = (reasons_pb2.ErrorReason, reasons_pb2.PhotoErrorReason, pb.NotPrefilledReason)


@pytest.mark.parametrize("enum", REASONS, ids=lambda enum: enum.DESCRIPTOR.name)
def test_every_reason_is_on_the_page(enum):
    page = (ROOT / "docs" / "callers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z_]+)`", page))
    assert set(enum.keys()) <= named


def test_the_service_config_is_the_clients():
    page = (ROOT / "docs" / "callers.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert json.loads(config) == json.loads(dict(build_options("127.0.0.1:1", ()))["grpc.service_config"])
