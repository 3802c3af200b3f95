"""What is shown of a running backfill: its line and its metrics."""

import socket
import urllib.request

import prometheus_client
import pytest

from serving.backfill.ledger import Entry, File
from serving.backfill.progress import Progress, serve_metrics


def create_entry(num_photos, num_failed):
    return Entry(
        shard=0,
        num_listings=4,
        num_photos=num_photos,
        suggestions=File(path="s", sha256="", num_rows=4, num_bytes=1),
        dead_letters=None,
        results={"classified": 3, "no_usable_photo": 1},
        errors={"PHOTO_NOT_FOUND": num_failed},
        seconds=1.0,
        finished_at="",
    )


def test_the_line_counts_shards_of_this_run_and_before():
    now_s = [0.0]
    progress = Progress(
        num_photos=100,
        num_photos_done_before=40,
        wait_times=lambda: {"decode": 3.0, "read": 1.0},
        clock=lambda: now_s[0],
    )
    assert progress.eta_s is None
    now_s[0] = 10.0
    progress.record_shard(create_entry(20, 2), write_s=1.0)
    assert (progress.photos_per_s, progress.eta_s) == (2.0, 20.0)
    assert str(progress) == (
        "60 of 100 photos, 2.0 photos/s, 0.3 minutes left; waiting for decode 60%, read 20%, write 20%"
    )
    progress.close()


def test_metrics_count_photos_and_listings_by_result():
    registry = prometheus_client.CollectorRegistry()
    progress = Progress(num_photos=100, num_photos_done_before=40, wait_times=dict, registry=registry)
    progress.record_shard(create_entry(20, 2), write_s=1.0)
    name = "listing_vision_backfill"
    assert registry.get_sample_value(f"{name}_photos_remaining") == 40
    assert registry.get_sample_value(f"{name}_shards_total") == 1
    assert registry.get_sample_value(f"{name}_listings_total", {"result": "no_usable_photo"}) == 1
    assert registry.get_sample_value(f"{name}_wait_seconds", {"stage": "write"}) == 1.0
    progress.close()


def test_metrics_are_served_at_a_port_that_is_free():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="Address already in use"):
            serve_metrics(port)
    prometheus_client.Gauge("served", "A metric.", registry=serve_metrics(port)).set(7)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        assert b"served 7.0" in page.read()
