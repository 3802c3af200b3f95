"""The same job on a real Ray of this machine; starting it takes long, so it is started once."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from serving.backfill import inspection
from serving.backfill.job import LOCK_PATH
from serving.backfill.run import open_or_create_job, run
from serving.backfill.shutdown import GracefulShutdown
from serving.storage import Store
from tests.support.backfill import (
    assert_same_suggestion,
    create_request,
    group_photos_by_listing,
    read_suggestions,
    run_backfill,
)


@pytest.fixture(scope="module")
def ray_session():
    ray = pytest.importorskip("ray", reason="Ray is an extra and not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield ray
    ray.shutdown()


def list_actor_pids(kind: str) -> list[int]:
    """Pids of Ray's worker processes that run an actor of that class."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::{kind}".encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def backfill_on_ray(bundle, market, output, *, separate_decoding, meanwhile=lambda: None):
    from serving.backfill.ray_engine import RayEngine

    store, shutdown = Store(str(output)), GracefulShutdown()
    engine = RayEngine(
        bundle.folder,
        isolate=False,
        stop=shutdown.abort,
        separate_decoding=separate_decoding,
        shut_down_ray=False,  # one session for all tests of this file
    )
    threading.Thread(target=meanwhile, daemon=True).start()
    try:
        with store.lock(LOCK_PATH):
            job = open_or_create_job(store, create_request(market), engine, lambda _: None)
            run(store, job, engine, max_error_share=1.0, shutdown=shutdown)
    finally:
        engine.close()
    return store


@pytest.mark.parametrize("separate_decoding", [False, True])
def test_it_answers_as_this_process_does(ray_session, bundle, market, tmp_path, separate_decoding):
    photos = group_photos_by_listing(market)
    bad, gone = list(photos)[:2]
    photos[bad][0].write_bytes(b"no photo")
    for photo in photos[gone]:
        photo.unlink()
    here = read_suggestions(run_backfill(bundle, market, tmp_path / "here"))
    store = backfill_on_ray(bundle, market, tmp_path / "there", separate_decoding=separate_decoding)
    there = read_suggestions(store)
    assert sorted(there) == sorted(here)
    for listing_id, row in there.items():
        assert_same_suggestion(row, here[listing_id])
    assert inspection.verify(store).is_valid


def test_a_killed_worker_costs_nothing(ray_session, bundle, market, tmp_path):
    killed = []

    def kill_one():
        while not killed:
            for pid in list_actor_pids("_Worker.classify")[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.001)

    store = backfill_on_ray(bundle, market, tmp_path / "out", separate_decoding=False, meanwhile=kill_one)
    assert killed
    assert inspection.verify(store).is_valid
    assert len(read_suggestions(store)) == len(group_photos_by_listing(market))
