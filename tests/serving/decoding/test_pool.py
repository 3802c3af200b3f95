"""Real decode workers, really killed, stopped and crashed."""

import asyncio
import contextlib
import gc
import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.decoding.pool import DecoderPool, DecoderThreads
from serving.decoding.prepared import prepare
from tests.support.helpers import create_scene, encode_image, list_decoder_pids
from tests.support.hostile_photos import hostile_photos
from tests.support.waiting import async_wait_until
from vision.decoding.time_limits import TimeLimits
from vision.errors import (
    PhotoDecoderCrashed,
    PhotoEmpty,
    PhotoNotAnImage,
    PhotoServiceBusy,
    PhotoTimedOut,
    PhotoTooManyBytes,
)
from vision.images import PhotoLimits, Preprocessing, prepare_photo

PREPROCESSING = Preprocessing(input_px=64)
PHOTO = encode_image(create_scene(800, 600))
PATIENT = TimeLimits(cpu_s=60, wall_s=60)


@contextlib.asynccontextmanager
async def create_pool(num_workers=1, **options):
    pool = DecoderPool(PREPROCESSING, num_workers, **options)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def run_with_pool(work, **options):
    async def run():
        async with create_pool(**options) as pool:
            return await work(pool)

    return asyncio.run(run())


@pytest.mark.parametrize("kind", [DecoderPool, DecoderThreads])
def test_photos_come_out_as_prepare_photo_makes_them(kind):
    photos = [PHOTO, encode_image(create_scene(90, 300), "PNG"), encode_image(create_scene(64, 64), "WEBP")]

    async def run():
        decoders = kind(PREPROCESSING, 2)
        await decoders.start()
        try:
            return await asyncio.gather(*(decoders.prepare(photo) for photo in photos * 5))
        finally:
            await decoders.close()

    for photo, got in zip(photos * 5, asyncio.run(run()), strict=True):
        assert got.error is None
        np.testing.assert_array_equal(got.pixels, prepare_photo(photo, PREPROCESSING))


def test_a_photos_own_error_comes_out_as_it_is():
    async def work(pool):
        return [await pool.prepare(data) for data in (b"", b"text " * 20, PHOTO)]

    empty, text, good = run_with_pool(work)
    assert isinstance(empty.error, PhotoEmpty)
    assert isinstance(text.error, PhotoNotAnImage)
    assert str(text.error) == str(prepare(b"text " * 20, PREPROCESSING).error)
    assert good.pixels is not None


@pytest.mark.parametrize("photo", hostile_photos(), ids=lambda photo: photo.name)
def test_every_hostile_photo_has_its_result_and_crashes_no_worker(photo, single_worker_pool):
    prepared = single_worker_pool(photo.data)
    if photo.expected:
        assert type(prepared.error) is photo.expected
    else:
        assert prepared.pixels.shape == (64, 64, 3)


@pytest.fixture(scope="module")
def single_worker_pool():
    """Decodes one photo after another in one worker, with all the time that a slow machine may need."""
    with asyncio.Runner() as runner:
        pool = DecoderPool(PREPROCESSING, 1, time_limits=PATIENT)
        runner.run(pool.start())
        yield lambda data: runner.run(pool.prepare(data))
        assert pool.num_workers_lost == 0
        runner.run(pool.close())


def test_the_byte_limit_is_exact():
    async def work(pool):
        return [await pool.prepare(data) for data in (PHOTO + b"\0", PHOTO)]

    over, at = run_with_pool(work, limits=PhotoLimits(max_bytes=len(PHOTO)))
    assert isinstance(over.error, PhotoTooManyBytes)
    assert at.pixels is not None


def test_a_worker_that_dies_over_a_photo_fails_that_photo_alone():
    async def work(pool):
        (victim,) = list_decoder_pids(pool)
        os.kill(victim, signal.SIGSTOP)  # so that it has the photo when it is killed
        first = asyncio.create_task(pool.prepare(PHOTO))
        others = [asyncio.create_task(pool.prepare(PHOTO)) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(victim, signal.SIGKILL)
        return (
            await first,
            await asyncio.gather(*others),
            pool.num_workers_lost,
            victim,
            list_decoder_pids(pool),
        )

    first, others, num_workers_lost, victim, now = run_with_pool(work, time_limits=PATIENT)
    assert isinstance(first.error, PhotoDecoderCrashed)
    assert all(other.pixels is not None for other in others)
    assert num_workers_lost == 1
    assert len(now) == 1
    assert victim not in now


def test_a_worker_that_hangs_is_replaced_and_its_photo_is_not_at_fault():
    async def work(pool):
        (victim,) = list_decoder_pids(pool)
        os.kill(victim, signal.SIGSTOP)
        hung = await pool.prepare(PHOTO)
        return hung, await pool.prepare(PHOTO)

    hung, after = run_with_pool(work, time_limits=TimeLimits(cpu_s=60, wall_s=0.5))
    assert isinstance(hung.error, PhotoServiceBusy)
    assert "within 0.5 s" in str(hung.error)
    assert after.pixels is not None


def test_a_photo_is_decoded_although_its_worker_had_no_core_for_seconds():
    async def work(pool):
        (worker,) = list_decoder_pids(pool)
        os.kill(worker, signal.SIGSTOP)
        preparing = asyncio.create_task(pool.prepare(PHOTO))
        await asyncio.sleep(3)
        os.kill(worker, signal.SIGCONT)
        return await preparing, pool.num_workers_lost

    prepared, num_workers_lost = run_with_pool(work)
    np.testing.assert_array_equal(prepared.pixels, prepare_photo(PHOTO, PREPROCESSING))
    assert num_workers_lost == 0


def test_a_photo_that_takes_too_much_cpu_time_is_refused():
    large = encode_image(create_scene(5000, 4000), "PNG")

    async def work(pool):
        return await pool.prepare(large), await pool.prepare(PHOTO)

    slow, after = run_with_pool(work, time_limits=TimeLimits(cpu_s=0.1, wall_s=60))
    assert isinstance(slow.error, PhotoTimedOut)
    assert "more than 0.1 s of CPU time" in str(slow.error)
    assert after.pixels is not None


def test_a_photo_that_needs_too_much_memory_fails_alone():
    out = io.BytesIO()
    Image.new("RGBA", (6000, 6000)).save(out, "PNG", compress_level=1)

    async def work(pool):
        return await pool.prepare(out.getvalue()), await pool.prepare(PHOTO)

    huge, after = run_with_pool(work, max_memory_bytes=400 << 20, time_limits=PATIENT)
    assert huge.error is not None
    assert huge.error.reason in ("PHOTO_UNREADABLE", "PHOTO_DECODER_CRASHED")
    assert after.pixels is not None
    enough = run_with_pool(lambda pool: pool.prepare(out.getvalue()), time_limits=PATIENT)
    assert enough.pixels is not None


def test_an_idle_worker_that_dies_fails_no_photo():
    async def work(pool):
        for victim in list_decoder_pids(pool):
            os.kill(victim, signal.SIGKILL)
        return await asyncio.gather(*(pool.prepare(PHOTO) for _ in range(4))), pool.num_workers_lost

    for _ in range(3):
        prepared, num_workers_lost = run_with_pool(work, num_workers=2)
        # A worker may get a photo after its death, before the pool notices it.
        assert sum(photo.pixels is None for photo in prepared) == num_workers_lost <= 2


def test_a_fork_server_that_dies_is_replaced_too():
    async def work(pool):
        before = pool.fork_server_pid
        os.kill(before, signal.SIGKILL)  # its workers die with it
        await async_wait_until(lambda: pool.fork_server_pid != before, "another fork server")
        return await pool.prepare(PHOTO)

    assert run_with_pool(work).pixels is not None


def test_a_photo_that_is_cancelled_while_it_waits_is_never_decoded():
    async def work(pool):
        (worker,) = list_decoder_pids(pool)
        os.kill(worker, signal.SIGSTOP)
        first = asyncio.create_task(pool.prepare(PHOTO))
        waiting = [asyncio.create_task(pool.prepare(PHOTO)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        os.kill(worker, signal.SIGCONT)
        result = await first
        # A worker would have one of them now if they were not skipped.
        return result, pool.num_waiting, pool.num_decoding

    first, num_waiting, num_decoding = run_with_pool(work, time_limits=PATIENT)
    assert first.pixels is not None
    assert num_waiting == 0
    assert num_decoding == 0


def test_a_photo_that_is_cancelled_in_a_worker_is_not_returned_for_the_next():
    other = encode_image(create_scene(700, 500).rotate(180))

    async def work(pool):
        (worker,) = list_decoder_pids(pool)
        os.kill(worker, signal.SIGSTOP)
        cancelled = asyncio.create_task(pool.prepare(PHOTO))
        await asyncio.sleep(0)
        cancelled.cancel()
        following = asyncio.create_task(pool.prepare(other))
        os.kill(worker, signal.SIGCONT)
        return await following

    np.testing.assert_array_equal(run_with_pool(work, time_limits=PATIENT).pixels, prepare_photo(other, PREPROCESSING))


def test_a_worker_that_starts_while_the_pool_closes_is_ended_too():
    async def run():
        pool = DecoderPool(PREPROCESSING, 2)
        starting = asyncio.create_task(pool.start())
        await async_wait_until(lambda: pool.fork_server_pid, "a fork server, with its workers to come")
        await pool.close()
        await starting
        return pool.pidfds

    assert asyncio.run(run()) == []
    gc.collect()  # an open socket would be a warning, and so an error


def test_closing_ends_every_process():
    async def run():
        async with create_pool(2) as pool:
            pids = [*list_decoder_pids(pool), pool.fork_server_pid]
            waiting = asyncio.create_task(pool.prepare(PHOTO))
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await async_wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "no process")
        return len(pids), waiting.cancelled()

    assert asyncio.run(run()) == (3, True)
