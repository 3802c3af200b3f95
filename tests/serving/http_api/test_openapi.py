"""The OpenAPI document that `scripts/openapi.py` generates, as clients and generators read it."""

import json
import shutil
import subprocess

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import reasons_pb2
from serving.api.status import CODES
from serving.http_api.errors import HTTP_ERRORS, get_statuses
from serving.http_api.routes import list_routes
from tests.conftest import ROOT

DOCUMENT = json.loads((ROOT / "serving" / "http_api" / "openapi.json").read_text(encoding="utf-8"))
SCHEMAS = DOCUMENT["components"]["schemas"]
NPM_PACKAGES = ("openapi-typescript@7", "typescript@5")
TYPESCRIPT_CALLER = """
import type { paths } from "./listing_vision";

type Classify = paths["/v1/listings:classify"]["post"];
type Request = Classify["requestBody"]["content"]["application/json"];
type Suggestion = Classify["responses"][200]["content"]["application/json"];
type Failure = Classify["responses"][400]["content"]["application/json"];

const request: Request = { photos: [{ content: "AAAA" }, { uri: "https://photos.example/1.jpg" }], languageCode: "ja" };
// @ts-expect-error a photo needs a source
export const withoutSource: Request = { photos: [{}] };
// @ts-expect-error photos are required
export const withoutPhotos: Request = { listingId: "a" };

export async function classify(url: string): Promise<string[]> {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify(request);
  const response = await fetch(`${url}/v1/listings:classify`, { method: "POST", headers, body });
  if (!response.ok) {
    const { error }: Failure = await response.json();
    if (error.reason === "TOO_BUSY") return [String(error.retryDelayMs ?? 0)];
    return (error.violations ?? []).map(({ field, reason }) => `${field} ${reason.toLowerCase()}`);
  }
  const suggestion: Suggestion = await response.json();
  const prefilled = suggestion.categoryPath.filter(({ action }) => action === "ACTION_PREFILL").map(({ name }) => name);
  const photos = suggestion.photos.map((photo) =>
    "error" in photo ? photo.error.message : photo.recognition.categoryName.trim(),
  );
  const seconds = suggestion.stageTimes.reduce((sum, { duration }) => sum + parseFloat(duration), 0);
  const name = suggestion.brand?.name ?? "";
  const why = suggestion.brand?.notPrefilled?.threshold?.toFixed(2) ?? "";
  return [...prefilled, ...photos, why, seconds.toFixed(3), suggestion.model.taxonomyVersion, name];
}

export async function explain(url: string): Promise<string> {
  type Map = paths["/v1/photos:explain"]["post"]["responses"][200]["content"]["application/json"];
  const map: Map = await (await fetch(`${url}/v1/photos:explain`)).json();
  return "categoryId" in map ? map.categoryId : map.name;
}

export async function listNames(url: string): Promise<string[]> {
  type Taxonomy = paths["/v1/taxonomy"]["get"]["responses"][200]["content"]["application/json"];
  const taxonomy: Taxonomy = await (await fetch(`${url}/v1/taxonomy`)).json();
  return taxonomy.categories.map(({ names, name }) => names["ja"] ?? name);
}
"""


def list_operations():
    return [operation for verbs in DOCUMENT["paths"].values() for operation in verbs.values()]


def test_it_is_valid():
    validate(DOCUMENT)


def test_its_routes_are_those_that_are_served():
    served = {(route.rule.path, route.rule.verb.lower()) for route in list_routes()}
    assert {(path, verb) for path, verbs in DOCUMENT["paths"].items() for verb in verbs} == served


def test_each_reason_that_ends_a_request_is_listed_with_its_status_and_an_example():
    found = set()
    for operation in list_operations():
        for status, response in operation["responses"].items():
            for reason in response["content"]["application/json"].get("examples", {}):
                found.add(reason)
                assert str(get_statuses(reason)[0]) == status
                assert f"`{reason}`" in response["description"]
    of_fields = {"FIELD_MISSING"}
    assert found == (set(CODES) | set(HTTP_ERRORS)) - of_fields
    validator = Draft202012Validator({**DOCUMENT, "$ref": "#/components/schemas/Error"})
    for example in DOCUMENT["components"]["examples"].values():
        validator.validate(example["value"])


def test_statuses_have_their_headers():
    headers = {"401": "WWW-Authenticate", "405": "Allow", "429": "Retry-After", "503": "Retry-After"}
    for operation in list_operations():
        for status, header in headers.items():
            if status in operation["responses"]:
                assert header in operation["responses"][status]["headers"]


def test_what_a_request_must_have_and_a_response_always_has_is_required():
    assert SCHEMAS["ClassifyListingRequest"]["required"] == ["photos"]
    response = SCHEMAS["ClassifyListingResponse"]
    assert set(response["properties"]) - set(response["required"]) == {"brand"}  # absent where a taxonomy has none
    assert set(response["properties"]) == {field.json_name for field in pb.ClassifyListingResponse.DESCRIPTOR.fields}
    assert all(one["description"] for one in response["properties"].values())
    optional = set(SCHEMAS["BrandSuggestion"]["properties"]) - set(SCHEMAS["BrandSuggestion"]["required"])
    assert optional == {"probability", "notPrefilled"}


def test_enums_of_responses_are_open_and_those_of_requests_closed():
    reasons = Draft202012Validator(SCHEMAS["ErrorReason"])
    assert reasons.is_valid("A_REASON_OF_TOMORROW")
    assert SCHEMAS["ErrorReason"]["anyOf"][0]["enum"] == reasons_pb2.ErrorReason.keys()[1:]
    treatment = Draft202012Validator(SCHEMAS["FormTreatment"])
    assert treatment.is_valid("FORM_TREATMENT_HIDDEN")
    assert not treatment.is_valid("FORM_TREATMENT_BLINKING")


@pytest.mark.parametrize(
    ("photo", "is_valid"),
    [
        ({"content": "AAAA"}, True),
        ({"uri": "https://a/b"}, True),
        ({}, False),
        ({"content": "AAAA", "uri": "https://a/b"}, False),
        ({"content": "AAAA", "name": "a"}, False),
    ],
)
def test_a_photo_has_exactly_one_source(photo, is_valid):
    validator = Draft202012Validator({**DOCUMENT, "$ref": "#/components/schemas/ClassifyListingRequest"})
    assert validator.is_valid({"photos": [photo]}) == is_valid


def test_a_typescript_client_type_checks_without_a_cast(tmp_path):
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), *NPM_PACKAGES]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=240, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install {' '.join(NPM_PACKAGES)}: {installed.stderr[-300:]}")
    (tmp_path / "openapi.json").write_text(json.dumps(DOCUMENT))
    (tmp_path / "caller.ts").write_text(TYPESCRIPT_CALLER)
    commands = (
        ["openapi-typescript", "openapi.json", "--output", "listing_vision.d.ts"],
        ["tsc", "--strict", "--noEmit", "--target", "es2022", "--lib", "es2022,dom", "--moduleResolution", "node",
         "caller.ts"],
    )  # fmt: skip
    for program, *arguments in commands:
        command = [str(tmp_path / "node_modules" / ".bin" / program), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
