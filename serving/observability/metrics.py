"""What an operator watches: Prometheus metrics of all gateway processes of a tree, counted in each and added up in one.

Gateway processes write theirs to files in a folder that the supervisor names (prometheus_client's multiprocess mode,
which must be chosen before that package is imported); the supervisor reads them all whenever it is asked.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import prometheus_client
from prometheus_client import multiprocess

__all__ = [
    "BREAKER_OPEN",
    "CALLS",
    "CALL_SECONDS",
    "CANARY_FALLBACKS",
    "PHOTOS",
    "PHOTOS_IN_FLIGHT",
    "PHOTOS_PER_LISTING",
    "RECORDS",
    "SERVING",
    "SHADOWS",
    "STAGE_SECONDS",
    "MetricsFolder",
]

_PREFIX = "listing_vision_gateway"
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FOLDER_ENV = "PROMETHEUS_MULTIPROC_DIR"

CALLS = prometheus_client.Counter(
    f"{_PREFIX}_calls",
    "Listings by how their call ended, and the release that was asked last.",
    ["result", "model_release"],
)
CALL_SECONDS = prometheus_client.Histogram(
    f"{_PREFIX}_call_seconds",
    "From the whole request's arrival to the answer.",
    ["result", "model_release"],
    buckets=_BUCKETS_S,
)
STAGE_SECONDS = prometheus_client.Histogram(
    f"{_PREFIX}_stage_seconds",
    "Of one listing: queue (waiting for the model to have room), decode (in the gateway), model (Triton, with decoding "
    "where it decodes), decision.",
    ["stage"],
    buckets=_BUCKETS_S,
)
PHOTOS = prometheus_client.Counter(f"{_PREFIX}_photos", "Photos by result: ok, or the reason of the error.", ["result"])
PHOTOS_PER_LISTING = prometheus_client.Histogram(
    f"{_PREFIX}_photos_per_listing", "Photos of a call.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 20)
)
PHOTOS_IN_FLIGHT = prometheus_client.Gauge(
    f"{_PREFIX}_photos_in_flight", "Photos that are let in and not answered.", multiprocess_mode="livesum"
)
CANARY_FALLBACKS = prometheus_client.Counter(
    f"{_PREFIX}_canary_fallbacks", "Listings of a canary that it did not answer and the stable release did.", ["reason"]
)
SHADOWS = prometheus_client.Counter(
    f"{_PREFIX}_shadows",
    "Listings for a shadow: answered same or other than the caller's answer, failed, dropped for want of time.",
    ["result", "model_release"],
)
RECORDS = prometheus_client.Counter(
    f"{_PREFIX}_records",
    "Rows of the tables suggestions, shadows and outcomes: taken, dropped for want of room, delayed by the storage.",
    ["table", "result"],
)
SERVING = prometheus_client.Gauge(
    f"{_PREFIX}_serving", "Gateway processes whose health is SERVING.", multiprocess_mode="livesum"
)
BREAKER_OPEN = prometheus_client.Gauge(
    f"{_PREFIX}_breaker_open", "Gateway processes that do not ask the model.", multiprocess_mode="livesum"
)


class MetricsFolder:
    """Where the gateway processes of one tree leave their metrics."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="listing-vision-metrics-"))
        self.registry = prometheus_client.CollectorRegistry()
        """Of the whole tree; the supervisor's own metrics join it."""
        multiprocess.MultiProcessCollector(self.registry, path=str(self.path))

    def build_environment(self) -> Mapping[str, str]:
        """Of a gateway process."""
        return {**os.environ, _FOLDER_ENV: str(self.path)}

    def mark_process_dead(self, pid: int) -> None:
        """A gateway process has ended: what it counted stays, what it was does not."""
        multiprocess.mark_process_dead(pid, path=str(self.path))

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
