"""The decoder whose calls block, with a real fork server."""

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.support.clock import ManualClock
from tests.support.helpers import create_scene, encode_image
from vision.decoding.fork_client import MAX_MEMORY_BYTES, Decoder, ForkServer, InlineDecoder
from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import TimeLimits
from vision.errors import PhotoEmpty, PhotoNotAnImage, PhotoServiceBusy, PhotoTimedOut
from vision.images import PhotoLimits, Preprocessing, prepare_photo

PREPROCESSING = Preprocessing(input_px=64)
SETTINGS = DecodeSettings(preprocessing=PREPROCESSING, limits=PhotoLimits(), max_memory_bytes=MAX_MEMORY_BYTES)
PHOTO = encode_image(create_scene(800, 600))


def create_decoder(*, cpu_s=60, wall_s=60, **options) -> Decoder:
    server = ForkServer(SETTINGS, [sys.executable], path=ROOT)
    return Decoder(server, SETTINGS, time_limits=TimeLimits(cpu_s=cpu_s, wall_s=wall_s), **options)


def test_decode_workers_keep_freed_memory_unless_their_caller_wants_otherwise(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    server = ForkServer(SETTINGS, [sys.executable], path=ROOT)
    decoder = Decoder(server, SETTINGS)
    try:
        variables = Path(f"/proc/{server.pid}/environ").read_text().split("\0")
        assert f"MALLOC_MMAP_THRESHOLD_={32 << 20}" in variables
        assert "MALLOC_TRIM_THRESHOLD_=1000000" in variables
    finally:
        decoder.close()


def test_a_photo_that_was_begun_and_never_ended_is_not_returned_for_the_next():
    decoder, other = create_decoder(), encode_image(create_scene(700, 500).rotate(180))
    try:
        decoder.begin(PHOTO)
        decoder.begin(other)
        np.testing.assert_array_equal(decoder.end(), prepare_photo(other, PREPROCESSING))
    finally:
        decoder.close()


def test_a_photos_time_counts_from_its_begin():
    # Otherwise the last of several photos that are decoded at once could take as often its time as there are photos.
    clock = ManualClock()
    decoder = create_decoder(wall_s=3600, clock=clock)
    try:
        signal.pidfd_send_signal(decoder.pidfd, signal.SIGSTOP)
        decoder.begin(PHOTO)
        clock.advance(3600)
        assert isinstance(decoder.end(), PhotoServiceBusy)
        decoder.begin(PHOTO)
        np.testing.assert_array_equal(decoder.end(), prepare_photo(PHOTO, PREPROCESSING))
    finally:
        decoder.close()


def test_a_photo_that_takes_too_much_cpu_time_is_at_fault():
    decoder = create_decoder(cpu_s=0.1)
    try:
        decoder.begin(encode_image(create_scene(5000, 4000), "PNG"))
        assert isinstance(decoder.end(), PhotoTimedOut)
        decoder.begin(PHOTO)
        np.testing.assert_array_equal(decoder.end(), prepare_photo(PHOTO, PREPROCESSING))
    finally:
        decoder.close()


def test_a_worker_that_has_yielded_is_replaced():
    decoder, large = create_decoder(), encode_image(create_scene(5000, 4000), "PNG")
    try:
        for photo, yields, is_replaced in ((large, False, False), (PHOTO, True, False), (large, True, True)):
            worker = decoder.pidfd
            decoder.begin(photo, yields=yields)
            np.testing.assert_array_equal(decoder.end(), prepare_photo(photo, PREPROCESSING))
            assert (decoder.pidfd != worker) == is_replaced
    finally:
        decoder.close()


@pytest.mark.parametrize("create", [create_decoder, lambda: InlineDecoder(SETTINGS)], ids=["isolated", "inline"])
def test_each_photo_has_its_own_error_and_the_next_is_decoded(create):
    decoder = create()
    try:
        found = []
        for data in (b"", b"text", PHOTO):
            decoder.begin(data)
            found.append(decoder.end())
        assert [type(result) for result in found[:2]] == [PhotoEmpty, PhotoNotAnImage]
        np.testing.assert_array_equal(found[2], prepare_photo(PHOTO, PREPROCESSING))
    finally:
        decoder.close()
