"""What was suggested and what was chosen, from a real gateway into real files."""

import asyncio
import time

import grpc
import pyarrow as pa
import pyarrow.dataset
import pytest

from serving.observability.metrics import RECORDS
from serving.outcomes.records import SCHEMAS
from serving.outcomes.writer import Recorder
from serving.protocol import listing_vision_pb2 as pb
from serving.storage import Store
from tests.serving.gateway.test_service import PHOTO, run_gateway


def table(folder, name):
    return pyarrow.dataset.dataset(folder / name, format="parquet").to_table().to_pylist()


def report_outcomes(bundle, *requests, folder=None):
    """What became of each outcome: None, or code and details; then what lies in the folder."""

    async def run():
        said = []
        async with run_gateway(bundle, outcomes=str(folder) if folder else None) as (_, client):
            for listing_id in ("known", ""):
                await client.classify([PHOTO, b"text"], listing_id=listing_id)
            for request in requests:
                try:
                    await client._stub.ReportOutcome(request)
                    said.append(None)
                except grpc.aio.AioRpcError as error:
                    said.append((error.code(), error.details()))
        return said

    return asyncio.run(run())


def create_outcome(listing_id="known", **fields):
    return pb.ReportOutcomeRequest(listing_id=listing_id, **fields)


def test_suggestions_and_outcomes_are_kept_as_they_were(bundle, tmp_path):
    leaf, brand = bundle.taxonomy.leaf_ids[0], bundle.taxonomy.brands[0].id
    requests = [
        create_outcome(
            category_id=leaf, brand=pb.BrandChoice(brand_id=brand), category_treatment=pb.FORM_TREATMENT_FILLED
        ),
        create_outcome(brand=pb.BrandChoice(no_brand=True), brand_treatment=pb.FORM_TREATMENT_HIDDEN),
        create_outcome("never suggested", brand=pb.BrandChoice(other_name="Somebody")),
    ]
    assert report_outcomes(bundle, *requests, folder=tmp_path) == [None] * 3
    (suggested,) = table(tmp_path, "suggestions")  # a listing without an id can never be told apart
    assert suggested["listing_id"] == "known"
    assert suggested["model_version"] == bundle.info.model_version
    assert suggested["category_ids"] == [c.id for c in bundle.taxonomy.ancestry(suggested["category_ids"][-1])]
    assert (suggested["num_photos"], suggested["num_unusable"]) == (2, 1)
    assert suggested["photo_bytes"] == len(PHOTO) + len(b"text")
    rows = sorted(table(tmp_path, "outcomes"), key=lambda row: row["time"])
    assert [row["listing_id"] for row in rows] == ["known", "known", "never suggested"]
    assert (rows[0]["category_id"], rows[0]["brand_kind"], rows[0]["brand_id"]) == (leaf, "BRAND", brand)
    assert (rows[0]["category_treatment"], rows[0]["brand_treatment"]) == ("FILLED", "UNSPECIFIED")
    assert (rows[1]["category_id"], rows[1]["brand_kind"], rows[1]["brand_treatment"]) == (None, "NO_BRAND", "HIDDEN")
    assert (rows[2]["brand_kind"], rows[2]["brand_name"]) == ("OTHER", "Somebody")


BAD = {
    "no listing": (create_outcome("", category_id="x"), "listing_id: it is empty"),
    "a long id": (
        create_outcome("x" * 201, brand=pb.BrandChoice(no_brand=True)),
        "201 characters exceed the limit of 200",
    ),
    "a category of nowhere": (create_outcome(category_id="nowhere"), "category_id: 'nowhere' is not in taxonomy"),
    "a brand of nobody": (
        create_outcome(brand=pb.BrandChoice(brand_id="nobody")),
        "brand.brand_id: 'nobody' is not in",
    ),
    "a brand that says nothing": (create_outcome(brand=pb.BrandChoice()), "brand: give brand_id, no_brand (true) or"),
    "no brand, or is it": (
        create_outcome(brand=pb.BrandChoice(no_brand=False)),
        "brand: give brand_id, no_brand (true)",
    ),
    "a blank name": (
        create_outcome(brand=pb.BrandChoice(other_name=" ")),
        "brand.other_name: give 1 to 200 characters",
    ),
    "nothing at all": (create_outcome(), "neither a category nor a brand"),
}


def test_bad_outcomes_are_refused_with_their_field(bundle, tmp_path):
    answers = report_outcomes(bundle, *(request for request, _ in BAD.values()), folder=tmp_path)
    for (code, details), (_, said) in zip(answers, BAD.values(), strict=True):
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert said in details
    assert not (tmp_path / "outcomes").exists()


def test_without_a_place_for_them_outcomes_are_not_taken(bundle):
    ((code, details),) = report_outcomes(bundle, create_outcome(category_id=bundle.taxonomy.leaf_ids[0]))
    assert (code, details) == (grpc.StatusCode.UNIMPLEMENTED, "this service records no outcomes (--outcomes)")


def row(**fields):
    return dict.fromkeys(SCHEMAS["outcomes"].names) | {"time": 0, "listing_id": "a"} | fields


def read_record_count(result):
    return RECORDS.labels("outcomes", result)._value.get()


def test_a_full_buffer_refuses_at_once_and_counts(tmp_path, monkeypatch):
    recorder = Recorder(str(tmp_path), flush_interval_s=3600, max_rows=2)
    before = read_record_count("dropped")
    assert [recorder.add("outcomes", row()) for _ in range(4)] == [True, True, False, False]
    assert read_record_count("dropped") == before + 2
    recorder.close()
    assert len(table(tmp_path, "outcomes")) == 2
    assert not recorder.add("outcomes", row())


def test_rows_wait_for_a_storage_that_fails_and_are_written_once_it_works(tmp_path, monkeypatch):
    recorder = Recorder(str(tmp_path), flush_interval_s=0.02)
    write, fails = Store.write, [True]

    def failing(self, path, data):
        if fails[0]:
            raise OSError("no space left")
        write(self, path, data)

    monkeypatch.setattr(Store, "write", failing)
    before = read_record_count("delayed")
    for number in range(3):
        assert recorder.add("outcomes", row(listing_id=str(number)))
    while read_record_count("delayed") == before:
        time.sleep(0.01)
    fails[0] = False
    recorder.close()
    assert sorted(found["listing_id"] for found in table(tmp_path, "outcomes")) == ["0", "1", "2"]


def test_files_appear_whole_by_themselves(tmp_path):
    recorder = Recorder(str(tmp_path), flush_interval_s=0.02)
    recorder.add("outcomes", row())
    while not list(tmp_path.glob("outcomes/*/*.parquet")):
        time.sleep(0.01)
    (path,) = tmp_path.glob("outcomes/*/*.parquet")
    assert pa.parquet.read_schema(path).equals(SCHEMAS["outcomes"])
    recorder.close()


def test_a_place_that_cannot_be_written_to_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Recorder(str(tmp_path / "file"))
