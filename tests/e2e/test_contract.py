"""The frozen contract: what was released keeps working, and a change that breaks it is refused."""

import asyncio
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import reasons_pb2
from serving.api.status import CODES
from tests.support.gateway import PHOTO, run_gateway

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "listing.vision.v1.ListingVisionService"


@pytest.fixture(scope="module")
def released():
    """The service as the last release described it, in a descriptor pool of its own: an old client's stubs."""
    pool = descriptor_pool.DescriptorPool()
    image = (ROOT / "protos" / "listing_vision.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(image).file:
        pool.Add(file)
    return pool


def call_as_old_client(channel, pool, name, **request):
    method = pool.FindServiceByName(SERVICE).methods_by_name[name]
    request_type, response_type = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
    call = channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )
    return call(request_type(**request))


def test_the_released_client_is_served(bundle, released):
    async def run():
        async with (
            run_gateway(bundle) as (gateway_server, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{gateway_server.port}") as channel,
        ):
            call = functools.partial(call_as_old_client, channel, released)
            classified = await call("ClassifyListing", listing_id="a", photos=[{"content": PHOTO}])
            model, taxonomy = await call("GetModel"), await call("GetTaxonomy")
            explained = await call("ExplainPhoto", photo={"content": PHOTO})
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call("ReportOutcome", listing_id="a", category_id="b")
            return classified, model, taxonomy, explained, refused.value

    classified, model, taxonomy, explained, refused = asyncio.run(run())
    assert classified.category_path
    assert classified.model.version == model.model.version == explained.model.version
    assert classified.model.taxonomy_version == taxonomy.taxonomy_version
    assert {c.category_id for c in classified.category_path} <= {c.category_id for c in taxonomy.categories}
    assert read_error_details(refused).reason == "OUTCOMES_NOT_RECORDED"


def run_generator(protos_change, tmp_path):
    """Run the contract's check on a copy of the project with a changed proto."""
    for name in ("protos", "scripts", "vision", "listing_vision_client", "serving"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    proto = tmp_path / "protos" / "listing" / "vision" / "v1" / "listing_vision.proto"
    proto.write_text(protos_change(proto.read_text()))
    command = [sys.executable, "scripts/generate_protocol.py"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("string suggestion_id = 2;", "string suggestion_name = 2;", 'changed name from "suggestion_id"'),
        ("ACTION_SUGGEST = 2;", "ACTION_SUGGEST = 3;", "Previously present enum value"),
        (
            "  // The suggested brand; absent if the taxonomy has no brands.\n  BrandSuggestion brand = 4;\n",
            "",
            'Previously present field "4"',
        ),
        ("  // The listing's photos, 1 to 20.\n", "", "should have a non-empty comment"),
    ],
    ids=["renamed field", "renumbered value", "deleted field", "no comment"],
)
def test_a_change_that_breaks_the_contract_is_refused(tmp_path, before, after, message):
    done = run_generator(lambda text: _replace_once(text, before, after), tmp_path)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_a_field_may_be_added(tmp_path):
    end = "}\n\n// One level of the category path."
    field = "  // A field of a later version.\n  string later = 99;\n"
    done = run_generator(lambda text: _replace_once(text, end, field + end), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "later" in (tmp_path / "listing_vision_client" / "protocol" / "listing_vision_pb2.pyi").read_text()


def _replace_once(text, before, after):
    assert text.count(before) == 1, before
    return text.replace(before, after)


def test_each_reason_is_in_the_contract_and_documented():
    documented = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    assert set(CODES) <= set(reasons_pb2.ErrorReason.keys())
    prefixes = {
        reasons_pb2.ErrorReason: "",
        reasons_pb2.PhotoErrorReason: "",
        pb.NotPrefilledReason: "NOT_PREFILLED_REASON_",
        pb.SuggestionIdStatus: "SUGGESTION_ID_STATUS_",
    }
    names = [name.removeprefix(prefix) for enum, prefix in prefixes.items() for name in enum.keys()[1:]]
    assert [name for name in names if f"`{name}`" not in documented] == []


def test_the_proto_states_the_code_of_each_reason():
    proto = (ROOT / "protos" / "listing" / "vision" / "v1" / "reasons.proto").read_text()
    stated = {name: code for code, name in re.findall(r"  // ([A-Z_]+)\b.*\n(?:  //.*\n)*  ([A-Z_]+) = \d+;", proto)}
    assert {reason: stated[reason] for reason in CODES} == {reason: code.name for reason, code in CODES.items()}
