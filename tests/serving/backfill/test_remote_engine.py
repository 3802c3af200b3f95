"""The same job against a running gateway and a running Triton."""

import re
import threading
import time

import pytest

from serving.backfill import inspection
from serving.backfill.job import LOCK_PATH
from serving.backfill.local_engine import create_local_engine
from serving.backfill.remote_engine import GatewayEngine, RateLimiter, create_remote_engine
from serving.backfill.run import GracefulShutdown, open_or_create_job, run
from serving.client import CallFailed
from serving.errors import BackfillError
from serving.storage import Store
from tests.serving.backfill.test_run import (
    photos_by_listing,
    read_dead_letters,
    read_suggestions,
    request_for,
    run_backfill,
)
from vision.bundle import load_bundle


def backfill_remote(address, bundle, market, output, **changed):
    store, shutdown = Store(str(output)), GracefulShutdown()
    engine = create_remote_engine(address, bundle, photos_per_s=None, stop=shutdown.abort, isolate=False)
    try:
        with store.lock(LOCK_PATH):
            job = open_or_create_job(store, request_for(market, output, **changed), engine, lambda _: None)
            run(store, job, engine, max_error_share=1.0, shutdown=shutdown)
    finally:
        engine.close()
    return store


def assert_same_suggestion(row: dict, other: dict) -> None:
    # Gateway and process round their numbers in another order.
    assert row["result"] == other["result"]
    assert row["category_id"] == other["category_id"]
    assert (row["brand"] or {}).get("id") == (other["brand"] or {}).get("id")
    assert row["num_photos"] == other["num_photos"]
    assert row["filled_category_id"] == other["filled_category_id"]
    assert [e["reason"] for e in row["photo_errors"]] == [e["reason"] for e in other["photo_errors"]]
    for step, wanted in zip(row["category_path"] or [], other["category_path"] or [], strict=True):
        assert step["probability"] == pytest.approx(wanted["probability"], abs=1e-4)
        assert (step["id"], step["filled"]) == (wanted["id"], wanted["filled"])


def test_a_gateway_answers_as_this_process_does(bundle, market, tmp_path, served):
    photos = photos_by_listing(market)
    one_bad, all_bad, gone = list(photos)[:3]
    photos[one_bad][0].write_bytes(b"no photo")
    for photo in photos[all_bad]:
        photo.write_bytes(b"")
    for photo in photos[gone]:
        photo.unlink()
    here = read_suggestions(run_backfill(bundle, market, tmp_path / "here", top_k=2))
    store = backfill_remote(served.address, bundle, market, tmp_path / "there", top_k=2)
    there = read_suggestions(store)
    assert list(there) == list(here)
    for listing_id, row in there.items():
        assert_same_suggestion(row, here[listing_id])
    ok = there[list(photos)[5]]
    assert len(ok["alternatives"]) == 2
    assert {letter["reason"] for letter in read_dead_letters(store)} == {
        "PHOTO_NOT_AN_IMAGE",
        "PHOTO_EMPTY",
        "PHOTO_NOT_FOUND",
    }
    assert inspection.verify(store).is_valid


def test_a_triton_answers_as_this_process_does(bundle, market, tmp_path, served):
    address = re.findall(r"Triton \(pid \d+\) answers at (\S+)", served.log)[-1]
    here = read_suggestions(run_backfill(bundle, market, tmp_path / "here"))
    there = read_suggestions(backfill_remote(address, bundle, market, tmp_path / "there"))
    assert list(there) == list(here)
    for listing_id, row in there.items():
        assert_same_suggestion(row, here[listing_id])


def test_a_triton_whose_model_is_another_by_now_ends_the_job(bundle, market, tmp_path, served):
    address = re.findall(r"Triton \(pid \d+\) answers at (\S+)", served.log)[-1]
    ours = load_bundle(bundle.folder)
    store, shutdown = Store(str(tmp_path / "out")), GracefulShutdown()
    engine = create_remote_engine(address, ours, photos_per_s=None, stop=shutdown.abort, isolate=False)
    try:
        job = open_or_create_job(store, request_for(market, tmp_path / "out"), engine, lambda _: None)
        # As if the one that answers had been replaced since.
        ours.golden.category_logits[:] += 1.0
        with pytest.raises(BackfillError, match="does not answer: golden photos: category_logits differs"):
            run(store, job, engine, max_error_share=1.0, shutdown=shutdown)
    finally:
        engine.close()
    assert store.list_files("suggestions") == []


def test_a_gateway_with_another_model_is_refused(bundle, served):
    other = load_bundle(bundle.folder)
    object.__setattr__(other.info, "model_version", "another")
    with pytest.raises(BackfillError, match="serves another model: version"):
        create_remote_engine(served.address, other, photos_per_s=None, stop=threading.Event())


def test_a_gateway_answers_no_embeddings(bundle, market, tmp_path, served):
    with pytest.raises(BackfillError, match="--embedding: a gateway answers none"):
        backfill_remote(served.address, bundle, market, tmp_path / "out", embedding=True)


def test_a_gateway_that_is_busy_or_away_is_asked_again(bundle, market, tmp_path, served, monkeypatch):
    monkeypatch.setattr("serving.backfill.remote_engine.INITIAL_BACKOFF_S", 0.01)
    store, shutdown = Store(str(tmp_path / "out")), GracefulShutdown()
    engine = create_remote_engine(served.address, bundle, photos_per_s=None, stop=shutdown.abort)
    assert isinstance(engine, GatewayEngine)
    real, lock, codes = engine._client.classify, threading.Lock(), ["RESOURCE_EXHAUSTED", "UNAVAILABLE"] * 3

    def busy(*arguments, **options):
        import grpc

        with lock:
            code = codes.pop() if codes else None
        if code:
            raise CallFailed(code=grpc.StatusCode[code], reason="TOO_BUSY", message="later", violations={})
        return real(*arguments, **options)

    monkeypatch.setattr(engine._client, "classify", busy)
    job = open_or_create_job(store, request_for(market, tmp_path / "out"), engine, lambda _: None)
    run(store, job, engine, max_error_share=0.0, shutdown=shutdown)
    engine.close()
    assert codes == []
    assert inspection.verify(store).is_valid


def test_a_rate_limit_spreads_photos_and_saves_nothing_up():
    waited = []

    class Recording(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            return False

    limit = RateLimiter(10.0)
    for _ in range(4):
        limit.wait(2, Recording())
    assert waited == pytest.approx([0.2, 0.4, 0.6], abs=0.05)
    waited.clear()
    time.sleep(0.9)
    limit.wait(1, Recording())
    limit.wait(1, Recording())
    assert waited == pytest.approx([0.1], abs=0.05)
    waited.clear()
    RateLimiter(None).wait(1000, Recording())
    assert waited == []


def test_local_and_target_name_what_they_answer_with(bundle, served):
    stop = threading.Event()
    here = create_local_engine(bundle, stop=stop, isolate=False)
    there = create_remote_engine(served.address, bundle, photos_per_s=None, stop=stop)
    assert here.versions.backend == "onnxruntime-cpu"
    assert there.versions.backend == "gateway"
    assert here.versions.version == there.versions.version == bundle.info.model_version
    here.close()
    there.close()
