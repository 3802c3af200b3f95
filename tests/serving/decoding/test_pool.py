"""Real child processes, really killed, stopped and crashed."""

import asyncio
import contextlib
import io
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.api import responses
from serving.decoding import pool as decoding
from serving.decoding.fork_client import MAX_MEMORY_BYTES, Decoder, ForkServer
from serving.decoding.fork_server import DecodeSettings, parse_photo_error
from serving.decoding.pool import DecoderPool, DecoderThreads
from tests.conftest import ROOT
from tests.support.helpers import create_scene, encode_image, list_decoder_pids
from tests.support.hostile_photos import hostile_photos
from vision.errors import PhotoDecoderCrashed, PhotoEmpty, PhotoNotAnImage, PhotoTimedOut, PhotoTooManyBytes
from vision.images import PhotoLimits, Preprocessing, prepare_photo

PREPROCESSING = Preprocessing(input_px=64)
PHOTO = encode_image(create_scene(800, 600))


@contextlib.asynccontextmanager
async def create_pool(num_workers=1, **options):
    decoders = DecoderPool(PREPROCESSING, num_workers, **options)
    await decoders.start()
    try:
        yield decoders
    finally:
        await decoders.close()


def run_with_pool(work, **options):
    async def run():
        async with create_pool(**options) as decoders:
            return await work(decoders)

    return asyncio.run(run())


async def wait_until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("decoders", [DecoderPool, DecoderThreads])
def test_photos_come_out_as_prepare_photo_makes_them(decoders):
    photos = [PHOTO, encode_image(create_scene(90, 300), "PNG"), encode_image(create_scene(64, 64), "WEBP")]

    async def run():
        made = decoders(PREPROCESSING, 2)
        await made.start()
        try:
            return await asyncio.gather(*(made.prepare(photo) for photo in photos * 5))
        finally:
            await made.close()

    for photo, got in zip(photos * 5, asyncio.run(run()), strict=True):
        assert got.error is None
        np.testing.assert_array_equal(got.pixels, prepare_photo(photo, PREPROCESSING))


def test_a_photos_own_error_comes_out_as_it_is():
    async def work(decoders):
        return [await decoders.prepare(data) for data in (b"", b"text " * 20, PHOTO)]

    empty, text, good = run_with_pool(work)
    assert isinstance(empty.error, PhotoEmpty)
    assert isinstance(text.error, PhotoNotAnImage)
    assert str(text.error) == str(responses.prepare(b"text " * 20, PREPROCESSING).error)
    assert good.pixels is not None


@pytest.mark.parametrize("photo", hostile_photos(), ids=lambda photo: photo.name)
def test_every_hostile_photo_is_answered_and_costs_no_child(photo, single_worker_pool):
    prepared = single_worker_pool(photo.data)
    if photo.expected:
        assert type(prepared.error) is photo.expected
    else:
        assert prepared.pixels.shape == (64, 64, 3)


@pytest.fixture(scope="module")
def single_worker_pool():
    """Decodes one photo after another in one child, with all the time that a slow machine may need."""
    with asyncio.Runner() as runner:
        decoders = DecoderPool(PREPROCESSING, 1, timeout_s=60)
        runner.run(decoders.start())
        yield lambda data: runner.run(decoders.prepare(data))
        assert decoders.num_workers_lost == 0
        runner.run(decoders.close())


def test_the_byte_limit_is_exact(monkeypatch):
    monkeypatch.setattr(responses, "PHOTO_LIMITS", PhotoLimits(max_bytes=len(PHOTO)))
    monkeypatch.setattr(decoding, "PHOTO_LIMITS", PhotoLimits(max_bytes=len(PHOTO)))

    async def work(decoders):
        return [await decoders.prepare(data) for data in (PHOTO + b"\0", PHOTO)]

    over, at = run_with_pool(work)
    assert isinstance(over.error, PhotoTooManyBytes)
    assert at.pixels is not None


def test_a_child_that_dies_over_a_photo_costs_that_photo_alone():
    async def work(decoders):
        (victim,) = list_decoder_pids(decoders)
        os.kill(victim, signal.SIGSTOP)  # so that it has the photo, for certain, when it dies
        first = asyncio.create_task(decoders.prepare(PHOTO))
        others = [asyncio.create_task(decoders.prepare(PHOTO)) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(victim, signal.SIGKILL)
        return (
            await first,
            await asyncio.gather(*others),
            decoders.num_workers_lost,
            victim,
            list_decoder_pids(decoders),
        )

    first, others, num_workers_lost, victim, now = run_with_pool(work, timeout_s=60)
    assert isinstance(first.error, PhotoDecoderCrashed)
    assert all(other.pixels is not None for other in others)
    assert num_workers_lost == 1
    assert len(now) == 1
    assert victim not in now


def test_a_child_that_hangs_is_killed_and_replaced():
    async def work(decoders):
        (victim,) = list_decoder_pids(decoders)
        os.kill(victim, signal.SIGSTOP)
        hung = await decoders.prepare(PHOTO)
        return hung, await decoders.prepare(PHOTO)

    hung, after = run_with_pool(work, timeout_s=0.5)
    assert isinstance(hung.error, PhotoTimedOut)
    assert "longer than 0.5 s" in str(hung.error)
    assert after.pixels is not None


def test_a_photo_that_needs_too_much_memory_costs_one_error():
    out = io.BytesIO()
    Image.new("RGBA", (6000, 6000)).save(out, "PNG", compress_level=1)

    async def work(decoders):
        return await decoders.prepare(out.getvalue()), await decoders.prepare(PHOTO)

    huge, after = run_with_pool(work, max_memory_bytes=400 << 20, timeout_s=60)
    assert huge.error is not None
    assert huge.error.reason in ("PHOTO_UNREADABLE", "PHOTO_DECODER_CRASHED")
    assert after.pixels is not None
    enough = run_with_pool(lambda decoders: decoders.prepare(out.getvalue()), timeout_s=60)
    assert enough.pixels is not None


def test_an_idle_child_that_dies_costs_no_photo():
    async def work(decoders):
        for victim in list_decoder_pids(decoders):
            os.kill(victim, signal.SIGKILL)
        return await asyncio.gather(*(decoders.prepare(PHOTO) for _ in range(4))), decoders.num_workers_lost

    for _ in range(3):
        prepared, num_workers_lost = run_with_pool(work, num_workers=2)
        # It may have been handed a photo in the moment between its death and the news of it.
        assert sum(photo.pixels is None for photo in prepared) == num_workers_lost <= 2


def test_the_process_that_starts_children_is_replaced_too():
    async def work(decoders):
        fork_server = decoders._fork_server.process
        fork_server.kill()
        await wait_until(lambda: fork_server.poll() is not None)
        for victim in list_decoder_pids(decoders):
            with contextlib.suppress(ProcessLookupError):  # they die with it
                os.kill(victim, signal.SIGKILL)
        await wait_until(lambda: decoders._fork_server is not None and decoders._fork_server.process is not fork_server)
        return await decoders.prepare(PHOTO)

    assert run_with_pool(work).pixels is not None


def test_a_photo_that_is_given_up_while_it_waits_is_never_decoded():
    async def work(decoders):
        (child,) = list_decoder_pids(decoders)
        os.kill(child, signal.SIGSTOP)
        first = asyncio.create_task(decoders.prepare(PHOTO))
        waiting = [asyncio.create_task(decoders.prepare(PHOTO)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        os.kill(child, signal.SIGCONT)
        result = await first
        # The child, stopped again, would have one of them now if they were not skipped.
        return result, decoders.num_waiting, [worker.job for worker in decoders._workers]

    first, num_waiting, jobs = run_with_pool(work, timeout_s=60)
    assert first.pixels is not None
    assert num_waiting == 0
    assert jobs == [None]


def test_a_photo_that_is_given_up_in_a_child_does_not_mix_up_the_next():
    other = encode_image(create_scene(700, 500).rotate(180))

    async def work(decoders):
        (child,) = list_decoder_pids(decoders)
        os.kill(child, signal.SIGSTOP)
        given_up = asyncio.create_task(decoders.prepare(PHOTO))
        await asyncio.sleep(0)
        given_up.cancel()
        following = asyncio.create_task(decoders.prepare(other))
        os.kill(child, signal.SIGCONT)
        return await following

    np.testing.assert_array_equal(run_with_pool(work, timeout_s=60).pixels, prepare_photo(other, PREPROCESSING))


def test_closing_ends_every_process():
    async def run():
        async with create_pool(2) as decoders:
            children = [*list_decoder_pids(decoders), decoders._fork_server.process.pid]
            waiting = asyncio.create_task(decoders.prepare(PHOTO))
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
        return len(children), waiting.cancelled()

    assert asyncio.run(run()) == (3, True)


def decoder(**options) -> Decoder:
    settings = DecodeSettings(preprocessing=PREPROCESSING, limits=PhotoLimits(), max_memory_bytes=MAX_MEMORY_BYTES)
    return Decoder(ForkServer(settings, [sys.executable], path=ROOT), settings, **options)


def test_a_photo_that_was_begun_and_never_ended_does_not_come_out_as_the_next():
    blocking, other = decoder(timeout_s=60), encode_image(create_scene(700, 500).rotate(180))
    try:
        blocking.begin(PHOTO)
        blocking.begin(other)
        np.testing.assert_array_equal(blocking.end(), prepare_photo(other, PREPROCESSING))
    finally:
        blocking.close()


def test_a_photos_time_counts_from_its_begin(monkeypatch):
    """Of several that are decoded at once the last would else be waited for as often as there are."""
    blocking = decoder(timeout_s=3600)
    try:
        signal.pidfd_send_signal(blocking._worker.pidfd, signal.SIGSTOP)
        blocking.begin(PHOTO)
        an_hour_later = time.monotonic() + 3600
        with monkeypatch.context() as patched:
            patched.setattr("serving.decoding.fork_client.time.monotonic", lambda: an_hour_later)
            assert isinstance(blocking.end(), PhotoTimedOut)
        blocking.begin(PHOTO)
        np.testing.assert_array_equal(blocking.end(), prepare_photo(PHOTO, PREPROCESSING))
    finally:
        blocking.close()


def test_the_blocking_decoder_says_what_is_wrong_and_goes_on():
    blocking = decoder(timeout_s=60)
    try:
        found = []
        for data in (b"", b"text", PHOTO):
            blocking.begin(data)
            found.append(blocking.end())
        assert [type(what) for what in found[:2]] == [PhotoEmpty, PhotoNotAnImage]
        np.testing.assert_array_equal(found[2], prepare_photo(PHOTO, PREPROCESSING))
    finally:
        blocking.close()


@pytest.mark.parametrize("said", [b"", b"nonsense", b"ListingVisionError\nx", b"Sequence\nx", b"\xff\xff\n"])
def test_a_child_that_says_anything_else_has_crashed(said):
    assert type(parse_photo_error(said)) is PhotoDecoderCrashed
