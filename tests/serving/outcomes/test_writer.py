"""What was suggested and what was chosen, from a real gateway into real files."""

import asyncio
import logging
import os
import shutil
import subprocess
import threading

import grpc
import pyarrow.parquet
import pytest
from prometheus_client import REGISTRY

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.outcomes.records import SCHEMAS
from serving.outcomes.writer import Recorder
from serving.storage import Store
from tests.support.gateway import PHOTO, open_stub, run_gateway
from tests.support.outcomes import read_table
from tests.support.waiting import wait_until


def report_outcomes(bundle, *requests, folder=None):
    """Return how each report ended, None or code and details, after two listings were classified."""

    async def run():
        ended = []
        async with run_gateway(bundle, outcomes=str(folder) if folder else None) as (server, client):
            for listing_id in ("known", ""):
                await client.classify([PHOTO, b"text"], listing_id=listing_id)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                for request in requests:
                    try:
                        await pb_grpc.ListingVisionServiceStub(channel).ReportOutcome(request)
                        ended.append(None)
                    except grpc.aio.AioRpcError as error:
                        ended.append((error.code(), error.details()))
        return ended

    return asyncio.run(run())


def create_outcome(listing_id="known", **fields):
    return pb.ReportOutcomeRequest(listing_id=listing_id, **fields)


def test_suggestions_and_outcomes_are_kept_as_they_were(bundle, tmp_path):
    leaf, brand = bundle.taxonomy.leaf_ids[0], bundle.taxonomy.brands[0].id
    requests = [
        create_outcome(
            category_id=leaf, brand=pb.BrandChoice(brand_id=brand), category_treatment=pb.FORM_TREATMENT_PREFILLED
        ),
        create_outcome(brand=pb.BrandChoice(no_brand=True), brand_treatment=pb.FORM_TREATMENT_HIDDEN),
        create_outcome("never suggested", brand=pb.BrandChoice(other_name="Somebody")),
    ]
    assert report_outcomes(bundle, *requests, folder=tmp_path) == [None] * 3
    (suggested,) = read_table(tmp_path, "suggestions")  # a listing without an id can never be told apart
    assert suggested["listing_id"] == "known"
    assert suggested["model_version"] == bundle.info.model_version
    assert suggested["category_ids"] == [c.id for c in bundle.taxonomy.get_lineage(suggested["category_ids"][-1])]
    assert (suggested["num_photos"], suggested["num_unusable"]) == (2, 1)
    assert suggested["photo_bytes"] == len(PHOTO) + len(b"text")
    rows = sorted(read_table(tmp_path, "outcomes"), key=lambda row: row["time"])
    assert [row["listing_id"] for row in rows] == ["known", "known", "never suggested"]
    assert (rows[0]["category_id"], rows[0]["brand_kind"], rows[0]["brand_id"]) == (leaf, "BRAND", brand)
    assert (rows[0]["category_treatment"], rows[0]["brand_treatment"]) == ("PREFILLED", "UNSPECIFIED")
    assert (rows[1]["category_id"], rows[1]["brand_kind"], rows[1]["brand_treatment"]) == (None, "NO_BRAND", "HIDDEN")
    assert (rows[2]["brand_kind"], rows[2]["brand_name"]) == ("OTHER", "Somebody")


def test_an_outcome_with_the_suggestion_id_of_its_response_joins_it(bundle, tmp_path):
    async def run():
        async with run_gateway(bundle, outcomes=str(tmp_path)) as (server, _), open_stub(server) as stub:
            request = pb.ClassifyListingRequest(listing_id="known", photos=[{"content": PHOTO}])
            signed = (await stub.ClassifyListing(request)).suggestion_id
            leaf = bundle.taxonomy.leaf_ids[0]
            reports = [
                pb.ReportOutcomeRequest(suggestion_id=signed, category_id=leaf),
                pb.ReportOutcomeRequest(suggestion_id=signed[:-2], listing_id="known", category_id=leaf),
                pb.ReportOutcomeRequest(listing_id="known", category_id=leaf),
            ]
            return [(await stub.ReportOutcome(report)).suggestion_id_status for report in reports]

    assert asyncio.run(run()) == [
        pb.SUGGESTION_ID_STATUS_VALID,
        pb.SUGGESTION_ID_STATUS_INVALID,
        pb.SUGGESTION_ID_STATUS_MISSING,
    ]
    (suggested,) = read_table(tmp_path, "suggestions")
    rows = {row["suggestion_id_status"]: row for row in read_table(tmp_path, "outcomes")}
    assert rows["VALID"]["suggestion_uid"] == suggested["suggestion_uid"] is not None
    assert rows["VALID"]["listing_id"] == "known"
    assert rows["VALID"]["model_version"] == bundle.info.model_version
    assert rows["INVALID"]["suggestion_uid"] is rows["MISSING"]["suggestion_uid"] is None


def test_a_bad_outcome_is_refused_with_its_field_and_not_written(bundle, tmp_path):
    ((code, details),) = report_outcomes(bundle, create_outcome(category_id="nowhere"), folder=tmp_path)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("category_id: 'nowhere' is not in taxonomy")
    assert not (tmp_path / "outcomes").exists()


def test_without_a_place_for_them_outcomes_are_not_taken(bundle):
    ((code, details),) = report_outcomes(bundle, create_outcome(category_id=bundle.taxonomy.leaf_ids[0]))
    assert (code, details) == (grpc.StatusCode.UNIMPLEMENTED, "this service records no outcomes (--outcomes)")


def row(**fields):
    return dict.fromkeys(SCHEMAS["outcomes"].names) | {"time": 0, "listing_id": "a"} | fields


def read_record_count(result):
    labels = {"table": "outcomes", "result": result}
    return REGISTRY.get_sample_value("listing_vision_gateway_records_total", labels) or 0.0


def test_a_full_buffer_refuses_at_once_and_counts(tmp_path, monkeypatch):
    recorder = Recorder(str(tmp_path), flush_interval_s=3600, max_rows=2)
    before = read_record_count("dropped")
    assert [recorder.add("outcomes", row()) for _ in range(4)] == [True, True, False, False]
    assert read_record_count("dropped") == before + 2
    recorder.close()
    assert len(read_table(tmp_path, "outcomes")) == 2
    assert not recorder.add("outcomes", row())


def test_rows_wait_for_a_storage_that_fails_and_are_written_once_it_works(tmp_path, monkeypatch):
    recorder = Recorder(str(tmp_path), flush_interval_s=0.02)
    write, works, failed = Store.write, threading.Event(), threading.Event()

    def write_if_it_works(self, path, data):
        if not works.is_set():
            failed.set()
            raise OSError("no space left")
        write(self, path, data)

    monkeypatch.setattr(Store, "write", write_if_it_works)
    before = read_record_count("delayed")
    for number in range(3):
        assert recorder.add("outcomes", row(listing_id=str(number)))
    assert failed.wait(30)
    works.set()
    recorder.close()
    assert read_record_count("delayed") > before
    assert sorted(found["listing_id"] for found in read_table(tmp_path, "outcomes")) == ["0", "1", "2"]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=False, capture_output=True)


def list_files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_a_full_disk_holds_no_partial_file_and_gets_the_rows_once_there_is_space(small_disk):
    recorder = Recorder(str(small_disk), flush_interval_s=0.05)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 480_000)
    before = read_record_count("delayed")
    names = [os.urandom(60).hex() for _ in range(2000)]  # 130 kB, compressed
    for name in names:
        assert recorder.add("outcomes", row(listing_id=name))
    wait_until(lambda: read_record_count("delayed") >= before + 3 * len(names), "three attempts")
    filler.unlink()
    wait_until(lambda: list(small_disk.glob("outcomes/*/*.parquet")), "all rows")
    recorder.close()
    assert len(list_files(small_disk)) == 1
    assert sorted(found["listing_id"] for found in read_table(small_disk, "outcomes")) == sorted(names)


def test_rows_that_a_full_disk_does_not_take_until_the_end_are_counted_and_logged(small_disk, caplog):
    recorder = Recorder(str(small_disk), flush_interval_s=3600)
    (small_disk / "filler").write_bytes(b"x" * 500_000)
    for _ in range(2000):
        recorder.add("outcomes", row(listing_id=os.urandom(60).hex()))
    before = read_record_count("dropped")
    recorder.close()
    assert read_record_count("dropped") == before + 2000
    assert "2000 rows of outcomes are lost" in caplog.text
    assert list_files(small_disk) == [small_disk / "filler"]


@pytest.mark.parametrize("how", ["removed", "unmounted"])
def test_a_folder_that_is_lost_is_not_created_again_and_gets_the_rows_when_it_is_back(how, request, tmp_path, caplog):
    disk = request.getfixturevalue("small_disk") if how == "unmounted" else tmp_path
    folder, elsewhere = disk / "outcomes", tmp_path / "elsewhere"
    recorder = Recorder(str(folder), flush_interval_s=0.02)
    if how == "unmounted":
        elsewhere.mkdir()
        subprocess.run(["mount", "--bind", disk, elsewhere], check=True)
        subprocess.run(["umount", disk], check=True)
    else:
        shutil.move(folder, elsewhere)
    try:
        before = read_record_count("delayed")
        assert recorder.add("outcomes", row())
        wait_until(lambda: read_record_count("delayed") >= before + 3, "three attempts")
        assert not folder.exists()
        assert "has been removed or unmounted" in caplog.text
        if how == "unmounted":
            subprocess.run(["mount", "--bind", elsewhere, disk], check=True)
        else:
            shutil.move(elsewhere, folder)
        wait_until(lambda: list(folder.glob("outcomes/*/*.parquet")), "the row")
        recorder.close()
        assert len(read_table(folder, "outcomes")) == 1
    finally:
        if how == "unmounted":
            subprocess.run(["umount", elsewhere], check=False)


def test_a_folder_that_is_created_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        Recorder(str(tmp_path / "new")).close()
        assert f"{tmp_path}/new did not exist and is created" in caplog.text
        caplog.clear()
        Recorder(str(tmp_path / "new")).close()
    assert not caplog.text


def test_what_a_failed_write_leaves_elsewhere_is_removed_and_nothing_is_written_twice(monkeypatch):
    store = Store("memory://outcomes-of-a-test")
    store.remove_all()
    recorder = Recorder(store.url, flush_interval_s=0.02)
    failing, write = threading.Event(), Store.write
    failing.set()

    def write_and_fail(self, path, data):
        write(self, path, data)
        if failing.is_set():
            raise OSError("no space left")

    monkeypatch.setattr(Store, "write", write_and_fail)
    before = read_record_count("delayed")
    recorder.add("outcomes", row())
    wait_until(lambda: read_record_count("delayed") >= before + 3, "three attempts")
    failing.clear()
    recorder.close()
    assert len(store.list_files("outcomes")) == 1


def test_files_are_written_at_intervals(tmp_path, monkeypatch):
    write, written = Store.write, threading.Event()

    def write_and_signal(self, path, data):
        write(self, path, data)
        if path.startswith("outcomes/"):
            written.set()

    monkeypatch.setattr(Store, "write", write_and_signal)
    recorder = Recorder(str(tmp_path), flush_interval_s=0.02)
    recorder.add("outcomes", row())
    assert written.wait(30)
    (path,) = tmp_path.glob("outcomes/*/*.parquet")
    assert pyarrow.parquet.read_schema(path).equals(SCHEMAS["outcomes"])
    recorder.close()


def test_a_place_that_cannot_be_written_to_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Recorder(str(tmp_path / "file"))
