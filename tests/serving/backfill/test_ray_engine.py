"""The same job on a real Ray of this machine; starting it takes long, so it is started once."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from serving.backfill import inspection
from serving.backfill.job import LOCK_PATH
from serving.backfill.local_engine import EngineOptions
from serving.backfill.ray_engine import RayEngine, plan_workers
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


def backfill_on_ray(bundle, market, output, *, isolate=False, meanwhile=lambda: None):
    store, shutdown = Store(str(output)), GracefulShutdown()
    engine = RayEngine(
        bundle.folder,
        EngineOptions(stop=shutdown.abort, isolate=isolate),
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


def test_it_answers_as_this_process_does(ray_session, bundle, market, tmp_path):
    photos = group_photos_by_listing(market)
    bad, gone = list(photos)[:2]
    photos[bad][0].write_bytes(b"no photo")
    for photo in photos[gone]:
        photo.unlink()
    here = read_suggestions(run_backfill(bundle, market, tmp_path / "here"))
    store = backfill_on_ray(bundle, market, tmp_path / "there", isolate=True)
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

    store = backfill_on_ray(bundle, market, tmp_path / "out", meanwhile=kill_one)
    assert killed
    assert inspection.verify(store).is_valid
    assert len(read_suggestions(store)) == len(group_photos_by_listing(market))


def test_a_worker_has_a_core_or_a_gpu_and_its_share_of_the_cores():
    assert plan_workers([{"CPU": 2.0}, {"CPU": 1.0, "memory": 7.0}]) == [(1, 0)] * 3
    assert plan_workers([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]) == [(8, 1), (8, 1), (8, 1)]
    assert plan_workers([{"CPU": 1.0, "GPU": 2.0}]) == [(0, 1), (0, 1)]
    assert plan_workers([{}]) == []


def test_cores_that_no_gpu_can_use_are_named(caplog):
    assert plan_workers([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 6.0}]) == [(4, 1)]
    assert "6 cores of nodes without GPUs are not used" in caplog.text
