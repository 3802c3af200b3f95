"""A feeder in this process, with scripted decoders."""

import mmap
import threading
from multiprocessing import Pipe

import numpy as np
import pytest

from tests.support.feeders import PREPROCESSING
from vision.decoding.fork_client import InlineDecoder
from vision.errors import PhotoDecoderCrashed, PhotoServiceBusy, PhotoTimedOut, PhotoTruncated
from vision.feeders.feeder import MAX_BUSY_ATTEMPTS, Feeder
from vision.feeders.pool import plan_feeders
from vision.feeders.protocol import READ_AHEAD, FeedResult, FeedTask

PIXELS = np.full((32, 32, 3), 5, np.uint8)


class ScriptedDecoder(InlineDecoder):
    """Returns the results of a list, then pixels."""

    def __init__(self, results=()):
        self._results = list(results)
        self.num_decoded = 0

    def end(self):
        self.num_decoded += 1
        return self._results.pop(0) if self._results else PIXELS


@pytest.fixture
def start_feeder():
    """Start a feeder with a decoder; returns its connection and slabs."""
    running = []

    def start(decoder):
        [settings] = plan_feeders(PREPROCESSING, num_decoders=1, slab_photos=200, num_taken=1, isolate=False)
        memory = mmap.mmap(-1, int(np.prod(settings.slabs_shape)))
        ours, theirs = Pipe()
        feeder = Feeder(settings, [decoder], theirs, memory)
        thread = threading.Thread(target=feeder.run)
        thread.start()
        running.append((ours, thread))
        return ours, settings.view_slabs(memoryview(memory))

    yield start
    for ours, thread in running:
        ours.close()
        thread.join(60)
        assert not thread.is_alive(), "a feeder must end with its connection"


def feed(connection, photos) -> FeedResult:
    connection.send_bytes(FeedTask(slab=1, urls=tuple(map(str, photos))).to_json())
    assert connection.poll(60)
    return FeedResult.from_json(connection.recv_bytes())


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"a photo")
    return tmp_path / "1.jpg"


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([PhotoDecoderCrashed("killed")], None),
        ([PhotoDecoderCrashed("killed")] * 2, "PHOTO_DECODER_CRASHED"),
        ([PhotoTimedOut("slow"), PhotoDecoderCrashed("killed")], "PHOTO_DECODER_CRASHED"),
        ([PhotoTruncated("cut")], "PHOTO_TRUNCATED"),
        ([PhotoServiceBusy("busy")] * (MAX_BUSY_ATTEMPTS - 1), None),
    ],
)
def test_a_photo_is_blamed_for_a_second_crash_and_never_for_a_busy_machine(start_feeder, photo, results, reason):
    connection, slabs = start_feeder(ScriptedDecoder(results))
    result = feed(connection, [photo])
    assert result.slab == 1
    assert {place: one.reason for place, one in result.failures.items()} == ({0: reason} if reason else {})
    assert slabs[1, 0, 0, 0, 0] == (0 if reason else 5)


def test_a_machine_that_remains_busy_ends_the_feeder_with_the_reason(start_feeder, photo):
    connection, _ = start_feeder(ScriptedDecoder([PhotoServiceBusy("busy")] * MAX_BUSY_ATTEMPTS))
    result = feed(connection, [photo])
    assert result.error == f"{photo} is not decoded after {MAX_BUSY_ATTEMPTS} attempts: busy"


def test_photos_that_are_read_ahead_are_bounded(start_feeder, photo, monkeypatch):
    decoder, lock = ScriptedDecoder(), threading.Lock()
    num_read, num_ahead = 0, []

    def read(url, *, timeout_s):
        nonlocal num_read
        with lock:
            num_read += 1
            num_ahead.append(num_read - decoder.num_decoded)
        return b"a photo"

    monkeypatch.setattr("vision.photo_files.read_photo", read)
    connection, _ = start_feeder(decoder)
    assert feed(connection, [photo] * 150).failures == {}
    assert num_read == decoder.num_decoded == 150
    assert max(num_ahead) <= READ_AHEAD
