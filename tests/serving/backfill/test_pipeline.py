"""Runs of shards of small photos, read by real feeders, with a model of a few lines."""

import contextlib
import threading
import time

import numpy as np
import pytest

from serving.backfill.pipeline import MAX_OPEN_SHARDS, Pipeline, WaitTimes
from serving.backfill.plan import ShardPhotos
from tests.support.feeders import PREPROCESSING, read_numbers, write_numbered_photos
from vision.engine import Logits
from vision.errors import EngineBroken, FeederError
from vision.feeders.pool import FeederPool, plan_feeders

SLAB_PHOTOS = 4
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of the numbers below 100; 101.png is broken."""
    folder = tmp_path_factory.mktemp("photos")
    write_numbered_photos(folder, range(100))
    (folder / "101.png").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def feeders():
    pool = FeederPool(plan_feeders(PREPROCESSING, num_decoders=2, slab_photos=SLAB_PHOTOS, num_taken=2, isolate=False))
    yield pool
    pool.close()


def infer(photos_nhwc):
    values = np.array(read_numbers(photos_nhwc), np.float32)[:, None]
    return Logits(*(factor * values for factor in range(1, len(Logits._fields) + 1)))


def create_shard(number: int, photos: list[int]) -> ShardPhotos:
    return ShardPhotos(
        number=number,
        listing_ids=["x"],
        photos=[f"{photo}.png" for photo in photos],
        groups=np.zeros(len(photos), np.int64),
    )


@contextlib.contextmanager
def open_pipeline(feeders, *, stop=None, infer=infer, max_batch_size=3):
    pipeline = Pipeline(
        feeders,
        infer,
        num_infer_threads=2,
        slab_photos=SLAB_PHOTOS,
        max_batch_size=max_batch_size,
        stop=stop or threading.Event(),
        wait_times=WaitTimes(),
    )
    try:
        yield pipeline
    finally:
        pipeline.close()


def run_all(feeders, folder, shards, **options):
    with open_pipeline(feeders, **options) as pipeline:
        return list(pipeline.run(shards, base_url=str(folder)))


@pytest.mark.parametrize("max_batch_size", [1, 3, 4])
def test_each_shard_gets_the_logits_of_its_photos_in_their_order(feeders, folder, max_batch_size):
    shards = [create_shard(n, list(range(n, 100, 7))) for n in range(20)]
    found = {d.shard.number: d for d in run_all(feeders, folder, iter(shards), max_batch_size=max_batch_size)}
    assert sorted(found) == list(range(20))
    for number, done in found.items():
        assert done.failures == {}
        assert done.logits.category[:, 0].tolist() == list(range(number, 100, 7))
        assert done.logits.embedding[:, 0].tolist() == [3 * n for n in range(number, 100, 7)]


def test_photos_fail_one_by_one(feeders, folder):
    [done] = run_all(feeders, folder, [create_shard(0, [1, 999, 101, 2, 98, 101])])
    assert {photo: failure.reason for photo, failure in done.failures.items()} == {
        1: "PHOTO_NOT_FOUND",
        2: "PHOTO_NOT_AN_IMAGE",
        5: "PHOTO_NOT_AN_IMAGE",
    }
    assert done.logits.category[:, 0].tolist() == [1, 2, 98]


def test_a_shard_without_a_usable_photo_is_done_too(feeders, folder):
    [done] = run_all(feeders, folder, [create_shard(0, [998, 999])])
    assert len(done.failures) == 2
    assert len(done.logits.category) == 0


def test_a_model_that_fails_ends_the_run_and_no_other(feeders, folder):
    fails = True

    def broken(photos_nhwc):
        if fails:
            raise EngineBroken("no model")
        return infer(photos_nhwc)

    with open_pipeline(feeders, infer=broken) as pipeline:
        with pytest.raises(EngineBroken, match="no model"):
            list(pipeline.run([create_shard(0, list(range(50)))], base_url=str(folder)))
        fails = False
        [done] = pipeline.run([create_shard(1, [4, 5])], base_url=str(folder))
        assert done.logits.category[:, 0].tolist() == [4, 5]
    assert not [thread for thread in threading.enumerate() if thread.name in ("submit", "model")]


def test_shards_that_cannot_be_read_end_the_run(feeders, folder):
    def shards():
        yield create_shard(0, [998])
        raise OSError("the plan is gone")

    with pytest.raises(OSError, match="the plan is gone"):
        run_all(feeders, folder, shards())


def test_runs_share_the_feeders(feeders, folder):
    found = {}
    with open_pipeline(feeders) as pipeline:

        def run(number):
            shards = [create_shard(at, list(range(number, 60, 2))) for at in range(4)]
            found[number] = list(pipeline.run(shards, base_url=str(folder)))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    for number in range(2):
        assert sorted(done.shard.number for done in found[number]) == [0, 1, 2, 3]
        assert all(done.logits.category[:, 0].tolist() == list(range(number, 60, 2)) for done in found[number])


def test_a_run_ends_after_stop_is_set(feeders, folder):
    stop = threading.Event()

    def stopping(photos_nhwc):
        stop.set()
        return infer(photos_nhwc)

    assert run_all(feeders, folder, [create_shard(0, list(range(100)) * 20)], stop=stop, infer=stopping) == []


def test_an_abandoned_run_leaves_the_slabs_to_the_next_one(feeders, folder):
    with open_pipeline(feeders) as pipeline:
        abandoned = pipeline.run((create_shard(n, list(range(90))) for n in range(100)), base_url=str(folder))
        next(abandoned)
        abandoned.close()
    [done] = run_all(feeders, folder, [create_shard(0, [3] * 30)])
    assert done.logits.category[:, 0].tolist() == [3] * 30


def test_shards_that_are_not_taken_are_bounded(feeders, folder):
    num_drawn, bound_is_reached = 0, threading.Event()

    def draw():
        nonlocal num_drawn
        for number in range(50):
            num_drawn += 1
            if num_drawn == MAX_OPEN_SHARDS + 1:
                bound_is_reached.set()
            yield create_shard(number, [2])

    with open_pipeline(feeders) as pipeline:
        found = pipeline.run(draw(), base_url=str(folder))
        next(found)
        assert bound_is_reached.wait(TIMEOUT_S)
        time.sleep(0.3)  # for further shards, which would be wrong
        assert num_drawn <= MAX_OPEN_SHARDS + 2
        assert len(list(found)) == 49


def test_feeders_that_are_gone_end_all_runs(folder):
    settings = plan_feeders(PREPROCESSING, num_decoders=1, slab_photos=SLAB_PHOTOS, num_taken=1, python=("false",))
    gone = FeederPool(settings)
    with open_pipeline(gone) as pipeline:
        for _ in range(2):
            with pytest.raises(FeederError, match="ended 3 times in a row"):
                list(pipeline.run([create_shard(0, [1])], base_url=str(folder)))
    gone.close()
