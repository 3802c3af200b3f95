"""Real feeders, which are killed too."""

import contextlib
import dataclasses
import os
import signal
import socket
from pathlib import Path

import pytest
from PIL import Image

from tests.support.feeders import PREPROCESSING, read_numbers, write_numbered_photos
from vision.decoding.time_limits import TimeLimits
from vision.errors import FeederError
from vision.feeders.pool import DECODERS_PER_FEEDER, MAX_DEATHS, FeederPool, plan_feeders

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths of 40 photos by their number; 5 is no photo, and 40 does not exist."""
    folder = tmp_path_factory.mktemp("photos")
    paths = write_numbered_photos(folder, range(40))
    Path(paths[5]).write_bytes(b"no photo")
    return [*paths, str(folder / "40.png")]


@pytest.fixture
def create_pool():
    pools = []

    def create(settings=None, **changed):
        defaults = {"num_decoders": 2, "slab_photos": 8, "num_taken": 1}
        pools.append(FeederPool(settings or plan_feeders(PREPROCESSING, **{**defaults, **changed})))
        return pools[-1]

    yield create
    for pool in pools:
        pool.close()


def take(pool):
    slab = pool.take(timeout_s=TIMEOUT_S)
    assert slab is not None
    return slab


def feed_all(pool, photos, *, num_tasks, on_slab=lambda number: None):
    """Have many slabs filled, check their pixels and release them."""
    tasks = [[(8 * task + place) % len(photos) for place in range(8)] for task in range(num_tasks)]
    submitted, found = 0, set()
    while len(found) < num_tasks:
        while submitted < num_tasks and pool.submit([photos[n] for n in tasks[submitted]], submitted, timeout_s=0):
            submitted += 1
        slab = take(pool)
        assert slab.key not in found
        found.add(slab.key)
        numbers = tasks[slab.key]
        assert read_numbers(slab.photos_nhwc) == [numbers[place] for place in slab.places]
        reasons = {5: "PHOTO_NOT_AN_IMAGE", 40: "PHOTO_NOT_FOUND"}
        bad = {place: reasons[number] for place, number in enumerate(numbers) if number in reasons}
        assert {place: failure.reason for place, failure in slab.failures.items()} == bad
        assert sorted([*slab.places, *slab.failures]) == list(range(8))
        slab.release()
        on_slab(len(found))


@pytest.mark.parametrize("isolate", [True, False])
def test_each_photo_is_in_its_place_or_among_the_failures(create_pool, photos, isolate):
    feed_all(create_pool(isolate=isolate), photos, num_tasks=30)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_killed_feeder_loses_nothing(create_pool, photos, isolate):
    pool = create_pool(num_decoders=1, isolate=isolate)
    killed = set(pool.pids)

    def kill(number):
        if number in (5, 20):
            os.kill(pool.pids[0], signal.SIGKILL)
            killed.update(pool.pids)

    # Before its first slab too.
    assert pool.submit(photos[:4], "first", timeout_s=0)
    os.kill(pool.pids[0], signal.SIGKILL)
    first = take(pool)
    assert read_numbers(first.photos_nhwc) == [0, 1, 2, 3]
    first.release()
    feed_all(pool, photos, num_tasks=40, on_slab=kill)
    assert len(killed) == 3
    assert not killed & set(pool.pids)


def test_a_feeder_that_ends_each_time_is_an_error(create_pool, photos):
    pool = create_pool(python=("false",))
    pool.submit(photos[:1], "x", timeout_s=0)
    with pytest.raises(FeederError, match=f"a feeder has ended {MAX_DEATHS} times in a row, status 1"):
        pool.take(timeout_s=TIMEOUT_S)


def test_a_python_that_is_not_there_is_an_error(create_pool):
    with pytest.raises(FileNotFoundError, match="/no/python"):
        create_pool(python=("/no/python",))


def test_a_machine_that_remains_too_busy_is_an_error(create_pool, tmp_path):
    Image.new("L", (6000, 6000)).save(tmp_path / "slow.png", compress_level=1)
    [settings] = plan_feeders(PREPROCESSING, num_decoders=1, slab_photos=8, num_taken=1)
    pool = create_pool([dataclasses.replace(settings, time_limits=TimeLimits(wall_s=0.0))])
    pool.submit([str(tmp_path / "slow.png")], "x", timeout_s=0)
    with pytest.raises(FeederError, match=r"slow\.png is not decoded after 10 attempts: the machine is busy"):
        pool.take(timeout_s=TIMEOUT_S)


def test_no_more_slabs_are_filled_than_there_are(create_pool, photos):
    pool = create_pool(num_decoders=1, isolate=False)
    num_slabs = 0
    while pool.submit(photos[:2], num_slabs, timeout_s=0):
        num_slabs += 1
    [settings] = plan_feeders(PREPROCESSING, num_decoders=1, slab_photos=8, num_taken=1, isolate=False)
    assert num_slabs == settings.num_slabs
    slabs = [take(pool) for _ in range(num_slabs)]
    assert pool.take(timeout_s=0) is None
    assert not pool.submit(photos[:2], "x", timeout_s=0)
    slabs[1].release()
    assert pool.submit(photos[2:4], "again", timeout_s=0)
    again = take(pool)
    assert (again.key, again.slab) == ("again", slabs[1].slab)
    assert read_numbers(again.photos_nhwc) == [2, 3]
    assert read_numbers(slabs[0].photos_nhwc) == [0, 1]


def test_a_server_that_never_answers_is_given_up(create_pool):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/1.jpg"
        pool = create_pool(num_decoders=1, photo_timeout_s=0.3)
        pool.submit([url], "x", timeout_s=0)
        slab = take(pool)
    assert (slab.failures[0].reason, len(slab.photos_nhwc)) == ("PHOTO_READ_FAILED", 0)
    assert slab.failures[0].message.endswith("the server has not answered within 0.3 s")
    assert slab.wait_times_s["read"] > 0.2


def list_descriptors():
    """Number and target of each that is open in this process, but for that of the listing itself."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, str(path.readlink())))
    return found


def test_processes_and_descriptors_end_with_the_pool(photos):
    before = list_descriptors()
    pool = FeederPool(plan_feeders(PREPROCESSING, num_decoders=1, slab_photos=8, num_taken=1))
    pool.submit(photos[:1], "x", timeout_s=0)
    take(pool)
    [pid] = pool.pids
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert {"MALLOC_ARENA_MAX=1", f"MALLOC_TRIM_THRESHOLD_={128 << 20}"} <= set(variables)
    pool.close()
    assert not Path(f"/proc/{pid}").exists()
    assert list_descriptors() <= before  # earlier tests' may be closed meanwhile


def test_feeders_share_the_decoders():
    def plan(num_decoders, **options):
        found = plan_feeders(PREPROCESSING, num_decoders=num_decoders, slab_photos=8, num_taken=2, **options)
        return [settings.num_decoders for settings in found]

    assert plan(1) == [1]
    assert plan(DECODERS_PER_FEEDER) == [8]
    assert plan(17) == [6, 6, 5]
    assert plan(3, isolate=False) == [1, 1, 1]
