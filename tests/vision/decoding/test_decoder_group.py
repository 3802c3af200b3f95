"""Several real decode workers for one caller, really stopped."""

import contextlib
import itertools
import signal
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.support.clock import ManualClock
from tests.support.helpers import create_scene, encode_image
from vision.decoding.decoder_group import DecoderGroup, InlineDecoderGroup
from vision.decoding.fork_client import MAX_MEMORY_BYTES, ForkServer
from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import TimeLimits
from vision.errors import PhotoNotAnImage, PhotoServiceBusy, PhotoTimedOut
from vision.images import PhotoLimits, Preprocessing, prepare_photo

PREPROCESSING = Preprocessing(input_px=64)
SETTINGS = DecodeSettings(preprocessing=PREPROCESSING, limits=PhotoLimits(), max_memory_bytes=MAX_MEMORY_BYTES)
PHOTOS = [encode_image(create_scene(80 + 16 * number, 64)) for number in range(7)]


@contextlib.contextmanager
def create_group(size: int, **limits):
    server = ForkServer(SETTINGS, [sys.executable], path=ROOT)
    group = DecoderGroup(server, SETTINGS, size=size, time_limits=TimeLimits(**{"cpu_s": 60, "wall_s": 60, **limits}))
    try:
        yield group
    finally:
        group.close()


def assert_are_pixels(results, photos):
    assert sorted(results) == list(range(len(photos)))
    for number, pixels in results.items():
        np.testing.assert_array_equal(pixels, prepare_photo(photos[number], PREPROCESSING))


@pytest.mark.parametrize("size", [1, 3, 9])
def test_each_photo_has_its_pixels(size):
    with create_group(size) as group:
        for num_photos in (0, 1, 7, 2):
            assert_are_pixels(dict(group.begin(PHOTOS[:num_photos])), PHOTOS[:num_photos])


def test_workers_are_started_as_listings_need_them():
    with create_group(3) as group:
        for num_photos, num_workers in [(1, 1), (2, 2), (7, 3), (1, 3)]:
            list(group.begin(PHOTOS[:num_photos]))
            assert len(group.pidfds) == num_workers


def test_the_other_workers_decode_while_one_is_slow():
    with create_group(2) as group:
        list(group.begin(PHOTOS))
        slow = group.pidfds[0]
        signal.pidfd_send_signal(slow, signal.SIGSTOP)
        results = iter(group.begin(PHOTOS))
        decoded = dict(itertools.islice(results, len(PHOTOS) - 1))
        signal.pidfd_send_signal(slow, signal.SIGCONT)
        assert_are_pixels(decoded | dict(results), PHOTOS)


def test_photos_of_a_frozen_worker_and_those_not_begun_find_the_machine_busy():
    with create_group(1, wall_s=0.5) as group:
        signal.pidfd_send_signal(group.pidfds[0], signal.SIGSTOP)
        results = dict(group.begin(PHOTOS))
        assert [type(results[number]) for number in range(len(PHOTOS))] == [PhotoServiceBusy] * len(PHOTOS)
        assert_are_pixels(dict(group.begin(PHOTOS[:1])), PHOTOS[:1])


def test_a_photo_that_takes_too_much_cpu_time_is_the_only_one_with_an_error():
    large = encode_image(create_scene(5000, 4000), "PNG")
    with create_group(2, cpu_s=0.1) as group:
        results = dict(group.begin([PHOTOS[0], large, PHOTOS[1]]))
    assert isinstance(results.pop(1), PhotoTimedOut)
    assert_are_pixels({0: results[0], 1: results[2]}, PHOTOS[:2])


def test_a_batch_that_is_not_read_to_its_end_leaves_nothing_for_the_next():
    with create_group(2) as group:
        next(iter(group.begin(PHOTOS)))
        others = PHOTOS[::-1]
        assert_are_pixels(dict(group.begin(others)), others)


def test_without_isolation_photos_are_decoded_in_turn_until_the_deadline():
    clock = ManualClock()
    group = InlineDecoderGroup(SETTINGS, time_limits=TimeLimits(wall_s=5), clock=clock)
    results = group.begin([PHOTOS[0], b"text", PHOTOS[1]])
    assert_are_pixels(dict([next(results)]), PHOTOS[:1])
    assert isinstance(next(results)[1], PhotoNotAnImage)
    clock.advance(5)
    assert isinstance(next(results)[1], PhotoServiceBusy)
    group.close()
