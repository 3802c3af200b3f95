"""The stages, with a decoder and a model of a few lines in place of the real ones."""

import threading
import time

import numpy as np
import pytest

from serving.backfill.pipeline import MAX_BUSY_ATTEMPTS, Pipeline, WaitTimes, decode_with_retry
from serving.backfill.plan import ShardPhotos
from serving.errors import BackfillError
from vision.engine import Logits
from vision.errors import EngineBroken, PhotoDecoderCrashed, PhotoServiceBusy, PhotoTruncated
from vision.feeders.photo_reader import PhotoReader


class NumberDecoder:
    """Decodes the number in a photo's bytes to a picture of it; refuses odd ones over 100."""

    def begin(self, data):
        self._data = data

    def end(self):
        number = int(self._data)
        if number > 100 and number % 2:
            return PhotoTruncated(f"{number} is odd")
        return np.full((1, 1, 3), number % 256, np.uint8)

    def close(self):
        pass


class RecordingReader(PhotoReader):
    """Records the photos that it reads."""

    def __init__(self, base_url, photos, stop):
        super().__init__(base_url, stop=stop)
        self._photos = photos

    def read(self, photo):
        self._photos.append(photo)
        return super().read(photo)


def infer(photos_nhwc):
    values = photos_nhwc[:, 0, 0, :1].astype(np.float32)
    return Logits(values, 2 * values, 3 * values)


def write_photos(tmp_path, numbers):
    for number in numbers:
        (tmp_path / str(number)).write_text(str(number))


def create_shard(number: int, photos: list[int]) -> ShardPhotos:
    return ShardPhotos(
        number=number,
        listing_ids=["x"],
        photos=[str(photo) for photo in photos],
        groups=np.zeros(len(photos), np.int64),
    )


def create_pipeline(tmp_path, *, stop=None, infer=infer, max_batch_size=3) -> Pipeline:
    stop = stop or threading.Event()
    reader = PhotoReader(str(tmp_path), stop=stop, max_attempts=2, initial_backoff_s=0.01)
    return Pipeline(
        reader,
        [NumberDecoder(), NumberDecoder()],
        infer,
        num_infer_threads=2,
        max_batch_size=max_batch_size,
        stop=stop,
        wait_times=WaitTimes(),
    )


@pytest.mark.parametrize("max_batch_size", [1, 7])
def test_each_shard_gets_the_logits_of_its_photos_in_their_order(tmp_path, max_batch_size):
    write_photos(tmp_path, range(200))
    shards = [create_shard(n, list(range(n, 100, 7))) for n in range(7)]
    found = {d.shard.number: d for d in create_pipeline(tmp_path, max_batch_size=max_batch_size).run(iter(shards))}
    assert sorted(found) == list(range(7))
    for number, done in found.items():
        assert done.failures == {}
        assert done.logits.category[:, 0].tolist() == list(range(number, 100, 7))
        assert done.logits.embedding[:, 0].tolist() == [3 * n for n in range(number, 100, 7)]


def test_photos_fail_one_by_one(tmp_path):
    write_photos(tmp_path, [1, 2, 101, 102])
    [done] = create_pipeline(tmp_path).run([create_shard(0, [1, 999, 101, 2, 102])])
    assert {photo: failure.reason for photo, failure in done.failures.items()} == {
        1: "PHOTO_NOT_FOUND",
        2: "PHOTO_TRUNCATED",
    }
    assert done.logits.category[:, 0].tolist() == [1, 2, 102]


def test_a_shard_without_a_usable_photo_is_done_too(tmp_path):
    [done] = create_pipeline(tmp_path).run([create_shard(0, [998, 999])])
    assert len(done.failures) == 2
    assert len(done.logits.category) == 0


def test_a_model_that_fails_ends_it(tmp_path):
    write_photos(tmp_path, range(50))

    def broken(photos_nhwc):
        raise EngineBroken("no model")

    with pytest.raises(EngineBroken, match="no model"):
        list(create_pipeline(tmp_path, infer=broken).run([create_shard(0, list(range(50)))]))
    assert not [thread for thread in threading.enumerate() if thread.name in ("feed", "decode", "model")]


def test_shards_that_cannot_be_read_end_it(tmp_path):
    def shards():
        yield create_shard(0, [998])
        raise OSError("the plan is gone")

    with pytest.raises(OSError, match="the plan is gone"):
        list(create_pipeline(tmp_path).run(shards()))


def test_it_ends_soon_after_stop_is_set(tmp_path):
    write_photos(tmp_path, range(100))
    stop, seen = threading.Event(), threading.Event()

    def slow(photos_nhwc):
        seen.set()
        time.sleep(0.05)
        return infer(photos_nhwc)

    pipeline = create_pipeline(tmp_path, stop=stop, infer=slow, max_batch_size=1)
    threading.Thread(target=lambda: (seen.wait(), stop.set())).start()
    assert list(pipeline.run([create_shard(0, list(range(100)) * 50)])) == []


def test_only_a_second_crash_of_the_decoder_fails_the_photo(tmp_path):
    write_photos(tmp_path, [2, 4, 6])
    times = {4: 1, 6: 2}

    class CrashingDecoder(NumberDecoder):
        def end(self):
            number = int(self._data)
            if times.get(number, 0):
                times[number] -= 1
                return PhotoDecoderCrashed("killed")
            return super().end()

    for max_batch_size in (1, 3):
        times.update({4: 1, 6: 2})
        stop = threading.Event()
        reader = PhotoReader(str(tmp_path), stop=stop)
        pipeline = Pipeline(
            reader,
            [CrashingDecoder()],
            infer,
            num_infer_threads=1,
            max_batch_size=max_batch_size,
            stop=stop,
            wait_times=WaitTimes(),
        )
        [done] = pipeline.run([create_shard(0, [2, 4, 6])])
        assert {photo: failure.reason for photo, failure in done.failures.items()} == {2: "PHOTO_DECODER_CRASHED"}
        assert done.logits.category[:, 0].tolist() == [2, 4]


class BusyDecoder(NumberDecoder):
    """Finds the machine busy as often as it is given."""

    def __init__(self, num_busy):
        self._num_busy = num_busy

    def end(self):
        self._num_busy -= 1
        return PhotoServiceBusy("busy") if self._num_busy >= 0 else super().end()


def test_a_busy_machine_is_no_result_of_a_photo():
    pixels = decode_with_retry(BusyDecoder(MAX_BUSY_ATTEMPTS - 1), b"4")
    assert pixels[0, 0, 0] == 4
    with pytest.raises(BackfillError, match=r"not decoded after 10 attempts: busy; rerun the same command"):
        decode_with_retry(BusyDecoder(MAX_BUSY_ATTEMPTS), b"4")


def test_a_machine_that_remains_busy_ends_the_pipeline(tmp_path):
    write_photos(tmp_path, [2])
    stop = threading.Event()
    pipeline = Pipeline(
        PhotoReader(str(tmp_path), stop=stop),
        [BusyDecoder(1000)],
        infer,
        num_infer_threads=1,
        max_batch_size=1,
        stop=stop,
        wait_times=WaitTimes(),
    )
    with pytest.raises(BackfillError, match="busy"):
        list(pipeline.run([create_shard(0, [2])]))


def test_shards_that_are_not_taken_are_bounded(tmp_path):
    write_photos(tmp_path, [2])
    read = []
    stop = threading.Event()
    reader = RecordingReader(str(tmp_path), read, stop)
    pipeline = Pipeline(
        reader, [NumberDecoder()], infer, num_infer_threads=1, max_batch_size=1, stop=stop, wait_times=WaitTimes()
    )
    found = pipeline.run(create_shard(number, [2]) for number in range(100))
    next(found)
    before = -1
    while len(read) != before:
        before = len(read)
        time.sleep(0.3)
    assert len(read) <= 10
    assert len(list(found)) == 99


def test_photos_that_are_read_ahead_are_bounded(tmp_path):
    """While the model is blocked, what is read ahead is bounded."""
    write_photos(tmp_path, range(1000))
    go, read = threading.Event(), []
    stop = threading.Event()
    reader = RecordingReader(str(tmp_path), read, stop)

    def waiting(photos_nhwc):
        go.wait()
        return infer(photos_nhwc)

    pipeline = Pipeline(
        reader, [NumberDecoder()], waiting, num_infer_threads=1, max_batch_size=1, stop=stop, wait_times=WaitTimes()
    )
    found = pipeline.run([create_shard(0, [0, 2, 4, 6, 8] * 200)])
    taker = threading.Thread(target=lambda: list(found))
    taker.start()
    before = -1
    while len(read) != before:
        before = len(read)
        time.sleep(0.3)
    assert len(read) < 100
    go.set()
    taker.join()
    assert len(read) == 1000
