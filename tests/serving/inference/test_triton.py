import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.decoding.prepared import PHOTO_LIMITS, prepare
from serving.inference.engine import EncodedInferenceResult
from serving.inference.fair_slots import CALLER_KEY
from serving.inference.health import wait_for_golden_photos
from serving.inference.model_names import MODEL_NAME
from serving.inference.triton import TritonEngine, compute_max_concurrent_requests
from serving.triton.config import RepositoryOptions, build_model_config
from serving.triton.process import LocalTriton
from tests.support.helpers import create_scene, encode_image, list_children
from tests.support.hostile_photos import hostile_photos
from tests.support.waiting import async_wait_until, wait_until
from vision.engine import OnnxEngine
from vision.errors import EngineBroken, EngineUnavailable, PhotoDecoderCrashed, PhotoNotAnImage, PhotoServiceBusy
from vision.images import prepare_photo
from vision.runtime.cpus import count_usable_cores


def test_triton_computes_what_onnx_runtime_computes(bundle, running_triton):
    photos = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)

    async def infer():
        engine = TritonEngine(running_triton.address)
        try:
            await wait_for_golden_photos(engine, bundle)
            assert await engine.fetch_backend() == "onnxruntime-cpu"
            together = await asyncio.gather(*(engine.infer(photos[:n], with_embedding=True) for n in (1, 2, 7)))
            with pytest.raises(EngineBroken, match="shape"):
                await engine.infer(photos[:, :32])
            return together
        finally:
            await engine.close()

    reference = OnnxEngine(bundle).infer(photos)
    for logits in asyncio.run(infer()):
        for got, expected in zip(logits, reference, strict=True):
            np.testing.assert_allclose(got, expected[: len(got)], atol=1e-4)


@pytest.fixture(scope="module", params=[True, False], ids=["isolated", "in the model's process"])
def triton(request, bundle, triton_installation):
    """A Triton whose model decodes, in decode workers or in its own process."""
    if request.param:
        yield request.getfixturevalue("running_triton")
        return
    triton = LocalTriton(bundle, triton_installation, RepositoryOptions(backend="python", isolate=False))
    triton.start()
    try:
        triton.wait_until_listening()
        yield triton
    finally:
        triton.stop()


def infer_encoded_files(triton, bundle, *listings, meanwhile=None) -> list[EncodedInferenceResult]:
    async def infer():
        engine = TritonEngine(triton.address)
        try:
            await wait_for_golden_photos(engine, bundle)
            await engine.fetch_backend()
            assert engine.infer_encoded
            results = asyncio.gather(*(engine.infer_encoded(photos, with_embedding=True) for photos in listings))
            if meanwhile:
                await meanwhile()
            return await results
        finally:
            await engine.close()

    return asyncio.run(infer())


def test_encoded_photos_have_the_logits_of_their_pixels(triton, bundle):
    photos = [
        encode_image(create_scene(300, 200)),
        encode_image(create_scene(90, 64), "PNG"),
        encode_image(create_scene(800, 600), "WEBP"),
    ]
    preprocessing = bundle.info.preprocessing
    reference = OnnxEngine(bundle).infer(np.stack([prepare_photo(photo, preprocessing) for photo in photos]))
    together, alone, broken = infer_encoded_files(triton, bundle, photos, photos[1:2], [photos[0], b"text", photos[2]])
    assert together.errors == [None] * 3
    for got, expected in zip(together.logits, reference, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_allclose(alone.logits.category, reference.category[1:2], atol=1e-4)
    np.testing.assert_allclose(broken.logits.category, reference.category[[0, 2]], atol=1e-4)
    assert [type(error) for error in broken.errors] == [type(None), PhotoNotAnImage, type(None)]
    assert str(broken.errors[1]) == str(prepare(b"text", preprocessing).error)


def test_every_hostile_photo_gets_its_own_error_from_triton(triton, bundle):
    drawer = [photo for photo in hostile_photos() if len(photo.data) <= PHOTO_LIMITS.max_bytes and photo.data]
    found = infer_encoded_files(triton, bundle, *([photo.data] for photo in drawer))
    for photo, decoded in zip(drawer, found, strict=True):
        (error,) = decoded.errors
        assert type(error) is (photo.expected or type(None)), photo.name
        assert len(decoded.logits.category) == (error is None)


@pytest.mark.parametrize("triton", [True], indirect=True)
def test_the_photos_of_a_listing_are_decoded_on_several_cores(triton, bundle):
    (found,) = infer_encoded_files(triton, bundle, [encode_image(create_scene(300, 200))] * 8)
    assert found.errors == [None] * 8
    per_instance = Counter(map(read_parent, list_decode_workers(triton.pid)))
    assert max(per_instance.values()) == min(4, count_usable_cores())


@pytest.mark.parametrize("triton", [True], indirect=True)
def test_slow_photos_yield_to_another_callers(triton, bundle):
    slow, quick = encode_image(create_scene(5000, 4000), "PNG"), encode_image(create_scene(300, 200))

    async def infer():
        engine = TritonEngine(triton.address)

        async def infer_as(caller, photo):
            CALLER_KEY.set(caller)
            assert (await engine.infer_encoded([photo])).errors == [None]

        try:
            await wait_for_golden_photos(engine, bundle)
            await engine.fetch_backend()
            workers = [list_decode_workers(triton.pid)]
            for caller, photo in (("a", slow), ("a", slow), ("b", quick), ("a", slow), ("b", quick)):
                await infer_as(caller, photo)
                workers.append(list_decode_workers(triton.pid))
            return workers
        finally:
            await engine.close()

    before, *after = asyncio.run(infer())
    # A worker that has yielded is replaced.
    assert after[0] == after[1] == after[2] == before
    assert after[3] == after[4] != before


def test_slow_photos_hold_a_model_for_a_bounded_time(triton, bundle, monkeypatch):
    monkeypatch.setattr("serving.inference.triton.MAX_ENCODED_PER_REQUEST", 60)
    (bomb,) = (photo.data for photo in hostile_photos() if photo.name == "webp_zip_bomb")
    # To decode them all would take longer than the gateway waits for Triton.
    (decoded,) = infer_encoded_files(triton, bundle, [bomb] * 60)
    assert {type(error) for error in decoded.errors} <= {type(None), PhotoServiceBusy}
    assert isinstance(decoded.errors[-1], PhotoServiceBusy)
    assert len(decoded.logits.category) == decoded.errors.count(None)
    photo = encode_image(create_scene(300, 200))
    (after,) = infer_encoded_files(triton, bundle, [photo])
    assert after.errors == [None]


def test_a_large_listing_is_sent_in_parts_and_answered_in_order(triton, bundle):
    photos = [encode_image(create_scene(100 + 10 * i, 90)) for i in range(11)]
    photos[6] = b"no photo"
    (together,) = infer_encoded_files(triton, bundle, photos)
    assert [i for i, error in enumerate(together.errors) if error] == [6]
    alone = infer_encoded_files(triton, bundle, *([photo] for photo in photos if photo != b"no photo"))
    expected = np.concatenate([one.logits.category for one in alone])
    np.testing.assert_allclose(together.logits.category, expected, atol=1e-4)


def test_listings_that_wait_share_a_request_and_keep_their_own_errors(triton, bundle, monkeypatch):
    monkeypatch.setattr("serving.inference.triton.compute_max_concurrent_requests", lambda config: 2)
    photos = [encode_image(create_scene(100 + 10 * i, 90)) for i in range(10)]
    photos[5] = b"no photo"
    alone = [result for photo in photos for result in infer_encoded_files(triton, bundle, [photo])]
    num_requests, num_photos = count_inferences(triton)
    shared = infer_encoded_files(triton, bundle, *([photo] for photo in photos))
    num_golden = 1
    wait_until(
        lambda: (
            count_inferences(triton)
            == (num_requests + num_golden + 2 + 2, num_photos + len(bundle.golden.photos_nhwc) + 10)
        ),
        "two requests for what came first, and two for what waited",
    )
    for got, expected in zip(shared, alone, strict=True):
        assert list(map(str, got.errors)) == list(map(str, expected.errors))
        for got_rows, expected_rows in zip(got.logits, expected.logits, strict=True):
            np.testing.assert_array_equal(got_rows, expected_rows)
    assert [i for i, result in enumerate(shared) if result.errors != [None]] == [5]


def test_a_caller_that_gives_up_takes_no_photo_of_others_with_it(triton, bundle, monkeypatch):
    monkeypatch.setattr("serving.inference.triton.compute_max_concurrent_requests", lambda config: 2)
    photo = encode_image(create_scene(300, 200))

    async def infer():
        engine = TritonEngine(triton.address)
        try:
            await wait_for_golden_photos(engine, bundle)
            await engine.fetch_backend()
            calls = [asyncio.create_task(engine.infer_encoded([photo])) for _ in range(12)]
            await asyncio.sleep(0)
            for i in (0, 3, 8):
                calls[i].cancel()
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await engine.close()

    results = asyncio.run(infer())
    assert [i for i, result in enumerate(results) if isinstance(result, asyncio.CancelledError)] == [0, 3, 8]
    assert all(result.errors == [None] for i, result in enumerate(results) if i not in (0, 3, 8))


def count_inferences(triton) -> tuple[int, int]:
    """Requests and photos that Triton has answered; it counts them a moment after their answer."""
    found = []
    with grpc.insecure_channel(triton.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while len(found) < 2 or found[-1] != found[-2]:
            time.sleep(0.2 if found else 0)
            (stats,) = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=MODEL_NAME)).model_stats
            found.append((stats.inference_stats.success.count, stats.inference_count))
    return found[-1]


@pytest.mark.parametrize("triton", [True], indirect=True)
def test_a_photo_that_crashes_a_decode_worker_in_triton_is_the_only_one_with_an_error(triton, bundle):
    photo = encode_image(create_scene(300, 200))
    infer_encoded_files(triton, bundle, [photo])  # once it answers, all workers run
    workers = list_decode_workers(triton.pid)
    memories = {worker: open_shared_memory(worker) for worker in workers}
    for worker, memory in memories.items():
        os.kill(worker, signal.SIGSTOP)
        os.pwrite(memory.fileno(), b"\0" * len(photo), 0)
    num_instances = len(set(map(read_parent, workers)))

    def list_busy_workers():
        return [w for w, memory in memories.items() if os.pread(memory.fileno(), len(photo), 0) == photo]

    async def kill_busy_workers():
        # Each instance gives its photo to one of its workers.
        await async_wait_until(lambda: len(list_busy_workers()) == num_instances, "a photo in each instance")
        await asyncio.sleep(0.05)  # a worker's request follows its photo within microseconds
        killed.extend(list_busy_workers())
        for worker in workers:
            os.kill(worker, signal.SIGKILL if worker in killed else signal.SIGCONT)

    killed: list[int] = []
    listings = [[photo]] * (num_instances + 2)
    errors = [
        type(result.errors[0]) for result in infer_encoded_files(triton, bundle, *listings, meanwhile=kill_busy_workers)
    ]
    for memory in memories.values():
        memory.close()
    assert errors.count(PhotoDecoderCrashed) == num_instances
    assert errors.count(type(None)) == 2
    assert set(list_decode_workers(triton.pid)).isdisjoint(killed)


def open_shared_memory(worker: int):
    """The memory in which a decode worker gets its photos."""
    paths = Path(f"/proc/{worker}/fd").iterdir()
    return next(path for path in paths if "listing-vision-photo" in os.readlink(path)).open("r+b", buffering=0)


def list_decode_workers(pid: int) -> list[int]:
    """Pids of the decode workers below a Triton, without their fork servers."""

    def list_descendants(parent):
        for child in list_children(parent):
            yield child
            yield from list_descendants(child)

    module = b"vision.decoding.fork_server"
    decoding = {p for p in list_descendants(pid) if module in Path(f"/proc/{p}/cmdline").read_bytes()}
    return sorted(p for p in decoding if read_parent(p) in decoding)


def read_parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_no_server_is_unavailable():
    async def call():
        engine = TritonEngine("127.0.0.1:1")
        try:
            await engine.infer(np.zeros((1, 64, 64, 3), np.uint8))
        finally:
            await engine.close()

    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1"):
        asyncio.run(call())


def test_requests_are_limited_to_what_keeps_all_instances_busy(bundle):
    on_cpu = RepositoryOptions(backend="python", instances=3, preferred_batch_size=4)
    assert compute_max_concurrent_requests(build_model_config(bundle, on_cpu)) == 2 * 3 * 4
    on_gpu = RepositoryOptions(backend="pytorch", instances=1, max_batch_size=16)
    assert compute_max_concurrent_requests(build_model_config(bundle, on_gpu)) == 2 * 16
