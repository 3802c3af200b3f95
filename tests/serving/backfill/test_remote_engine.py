"""The same job against a running gateway and a running Triton."""

import dataclasses
import re
import threading
import time

import grpc
import numpy as np
import pytest

from listing_vision_client import CallFailed, ListingVisionClient, PhotoErrorReason
from listing_vision_client.errors import ErrorDetails
from listing_vision_client.results import PhotoError, PhotoResult
from serving.backfill import inspection
from serving.backfill.job import LOCK_PATH, Job
from serving.backfill.local_engine import EngineOptions, create_local_engine
from serving.backfill.plan import ShardPhotos
from serving.backfill.remote_engine import GatewayEngine, RateLimiter, create_remote_engine
from serving.backfill.run import open_or_create_job, run
from serving.backfill.shutdown import GracefulShutdown
from serving.errors import BackfillError
from serving.storage import Store
from tests.support.backfill import (
    assert_same_suggestion,
    create_request,
    group_photos_by_listing,
    read_dead_letters,
    read_suggestions,
    run_backfill,
)
from vision.bundle import load_bundle


def backfill_remote(address, bundle, market, output, **changed):
    store, shutdown = Store(str(output)), GracefulShutdown()
    engine = create_remote_engine(address, bundle, EngineOptions(stop=shutdown.abort, isolate=False), photos_per_s=None)
    try:
        with store.lock(LOCK_PATH):
            job = open_or_create_job(store, create_request(market, **changed), engine, lambda _: None)
            run(store, job, engine, max_error_share=1.0, shutdown=shutdown)
    finally:
        engine.close()
    return store


def test_a_gateway_gives_the_same_suggestions_as_this_process(bundle, market, tmp_path, served):
    photos = group_photos_by_listing(market)
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


def test_a_triton_gives_the_same_suggestions_as_this_process(bundle, market, tmp_path, served):
    address = re.findall(r"Triton \(pid \d+\) answers at (\S+)", served.log)[-1]
    here = read_suggestions(run_backfill(bundle, market, tmp_path / "here"))
    there = read_suggestions(backfill_remote(address, bundle, market, tmp_path / "there"))
    assert list(there) == list(here)
    for listing_id, row in there.items():
        assert_same_suggestion(row, here[listing_id])


def test_a_triton_whose_model_was_replaced_ends_the_job(bundle, market, tmp_path, served):
    address = re.findall(r"Triton \(pid \d+\) answers at (\S+)", served.log)[-1]
    ours = load_bundle(bundle.folder)
    store, shutdown = Store(str(tmp_path / "out")), GracefulShutdown()
    engine = create_remote_engine(address, ours, EngineOptions(stop=shutdown.abort, isolate=False), photos_per_s=None)
    try:
        job = open_or_create_job(store, create_request(market), engine, lambda _: None)
        # As if the served model had been replaced since.
        ours.golden.category_logits[:] += 1.0
        with pytest.raises(BackfillError, match="the model fails: golden photos: category_logits differs"):
            run(store, job, engine, max_error_share=1.0, shutdown=shutdown)
    finally:
        engine.close()
    assert store.list_files("suggestions") == []


def test_a_gateway_with_another_model_is_refused(bundle, served):
    other = load_bundle(bundle.folder)
    object.__setattr__(other.info, "model_version", "another")
    with pytest.raises(BackfillError, match="serves another model: version"):
        create_remote_engine(served.address, other, EngineOptions(), photos_per_s=None)


def test_a_gateway_takes_no_renditions(bundle, served):
    with pytest.raises(BackfillError, match="decides as for originals; leave --rendition or --target out"):
        create_remote_engine(served.address, bundle, EngineOptions(rendition_px=320), photos_per_s=None)


def test_no_embeddings_are_written_through_a_gateway(bundle, market, tmp_path, served):
    with pytest.raises(BackfillError, match="--embedding is not written through a gateway"):
        backfill_remote(served.address, bundle, market, tmp_path / "out", embedding=True)


class FlakyClient(ListingVisionClient):
    """Fails its first calls with the given codes and reasons."""

    def __init__(self, address, failures):
        super().__init__(address)
        self._failures, self._lock = list(failures), threading.Lock()
        self.num_calls = 0

    def classify(self, photos, **options):
        with self._lock:
            self.num_calls += 1
            failure = self._failures.pop(0) if self._failures else None
        if failure:
            code, reason = failure
            raise CallFailed(code=code, message="later", details=ErrorDetails(reason=reason))
        return super().classify(photos, **options)


def backfill_through(client, address, bundle, market, output):
    store, shutdown = Store(str(output)), GracefulShutdown()
    engine = GatewayEngine(address, client, bundle, RateLimiter(None), EngineOptions(stop=shutdown.abort))
    try:
        job = open_or_create_job(store, create_request(market), engine, lambda _: None)
        run(store, job, engine, max_error_share=0.0, shutdown=shutdown)
    finally:
        engine.close()
    return store


def test_an_overloaded_or_unavailable_gateway_is_called_again(bundle, market, tmp_path, served, monkeypatch):
    monkeypatch.setattr("serving.backfill.remote_engine.INITIAL_BACKOFF_S", 0.01)
    codes = grpc.StatusCode
    failures = [(codes.RESOURCE_EXHAUSTED, "TOO_BUSY"), (codes.UNAVAILABLE, ""), (codes.DEADLINE_EXCEEDED, "")] * 2
    client = FlakyClient(served.address, [*failures, (codes.CANCELLED, "")])
    store = backfill_through(client, served.address, bundle, market, tmp_path / "out")
    assert client.num_calls == len(group_photos_by_listing(market)) + 7
    assert inspection.verify(store).is_valid


def test_a_gateway_without_time_to_decode_is_called_again(bundle, market, tmp_path, served, monkeypatch):
    monkeypatch.setattr("serving.backfill.remote_engine.INITIAL_BACKOFF_S", 0.01)
    client = FlakyClient(served.address, [(grpc.StatusCode.UNAVAILABLE, "PHOTOS_UNAVAILABLE")])
    store = backfill_through(client, served.address, bundle, market, tmp_path / "out")
    assert client.num_calls == len(group_photos_by_listing(market)) + 1
    assert not read_dead_letters(store)


class BusyClient(ListingVisionClient):
    """The first response lacks a photo for which the gateway had no time."""

    def __init__(self, address):
        super().__init__(address)
        self._lock, self.num_calls = threading.Lock(), 0

    def classify(self, photos, **options):
        response = super().classify(photos, **options)
        with self._lock:
            self.num_calls += 1
            if self.num_calls == 1:
                busy = PhotoError(reason=PhotoErrorReason.SERVICE_BUSY, message="later")
                photos = (PhotoResult(recognition=None, error=busy), *response.photos[1:])
                return dataclasses.replace(response, photos=photos)
        return response


def test_a_photo_that_a_gateway_had_no_time_for_is_sent_again(bundle, market, tmp_path, served, monkeypatch):
    monkeypatch.setattr("serving.backfill.remote_engine.INITIAL_BACKOFF_S", 0.01)
    client = BusyClient(served.address)
    store = backfill_through(client, served.address, bundle, market, tmp_path / "out")
    assert client.num_calls == len(group_photos_by_listing(market)) + 1
    assert not read_dead_letters(store)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "PHOTOS_TOO_MANY"),
        (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"),
        # gRPC itself, of a message that is too large.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    ],
)
def test_a_call_that_cannot_succeed_is_not_retried(bundle, market, tmp_path, served, code, reason):
    client = FlakyClient(served.address, [(code, reason)] * 1000)
    with pytest.raises(BackfillError, match="rejects a listing"):
        backfill_through(client, served.address, bundle, market, tmp_path / "out")
    assert client.num_calls <= len(group_photos_by_listing(market))


def test_a_gateway_that_stays_unavailable_ends_the_job(bundle, market, tmp_path, served, monkeypatch):
    monkeypatch.setattr("serving.backfill.remote_engine.UNAVAILABLE_TIMEOUT_S", 0.3)
    monkeypatch.setattr("serving.backfill.remote_engine.INITIAL_BACKOFF_S", 0.05)
    client = FlakyClient(served.address, [(grpc.StatusCode.UNAVAILABLE, "")] * 10_000)
    began_s = time.monotonic()
    with pytest.raises(BackfillError, match=r"unavailable for 0\.3 s: UNAVAILABLE: later; rerun the same command"):
        backfill_through(client, served.address, bundle, market, tmp_path / "out")
    assert 0.3 < time.monotonic() - began_s < 5


def test_pauses_between_calls_double_and_are_drawn(bundle, served, tmp_path):
    pauses_s = []

    class Recording(threading.Event):
        def wait(self, timeout=None):
            pauses_s.append(timeout)
            if len(pauses_s) == 8:
                self.set()
            return self.is_set()

    stop = Recording()
    client = FlakyClient(served.address, [(grpc.StatusCode.UNAVAILABLE, "")] * 10_000)
    engine = GatewayEngine(served.address, client, bundle, RateLimiter(None), EngineOptions(stop=stop))
    photo = tmp_path / "0.jpg"
    photo.write_bytes(b"a photo")
    shard = ShardPhotos(number=0, listing_ids=["a"], photos=[str(photo)], groups=np.zeros(1, np.int64))
    job = Job(
        manifest="m",
        manifest_sha256="",
        base_url="",
        model=engine.versions,
        listings_per_shard=1,
        top_k=0,
        embedding=False,
        num_listings=1,
        num_photos=1,
        num_shards=1,
    )

    with pytest.raises(BackfillError, match="unavailable"):
        list(engine.classify(job, [shard]))
    engine.close()
    for pause_s, wanted_s in zip(pauses_s, [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10], strict=True):
        assert 0.5 * wanted_s <= pause_s <= 1.5 * wanted_s
    assert client.num_calls == 9


def test_a_rate_limit_spreads_photos_and_saves_nothing_up():
    waited = []

    class Recording(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            return False

    now_s = [100.0]
    limit = RateLimiter(10.0, clock=lambda: now_s[0])
    for _ in range(4):
        limit.wait(2, Recording())
    assert waited == pytest.approx([0.2, 0.4, 0.6])
    waited.clear()
    now_s[0] += 10.0
    limit.wait(1, Recording())
    limit.wait(1, Recording())
    assert waited == pytest.approx([0.1])
    waited.clear()
    RateLimiter(None).wait(1000, Recording())
    assert waited == []


def test_engines_name_their_backend(bundle, served):
    here = create_local_engine(bundle, EngineOptions(isolate=False))
    there = create_remote_engine(served.address, bundle, EngineOptions(), photos_per_s=None)
    assert here.versions.backend == "onnxruntime-cpu"
    assert there.versions.backend == "gateway"
    assert here.versions.version == there.versions.version == bundle.info.model_version
    here.close()
    there.close()
