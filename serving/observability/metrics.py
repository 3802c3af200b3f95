"""Prometheus metrics of the gateway processes, which the supervisor adds up.

Gateway processes write metrics to files in a folder that the supervisor names (prometheus_client's multiprocess mode,
which must be chosen before that package is imported); the supervisor reads the files at each scrape.
"""

import os
from collections.abc import Mapping

import prometheus_client
from prometheus_client import multiprocess

from serving.processes.temporary_folders import TemporaryFolder, remove_abandoned_folders

__all__ = [
    "BREAKER_OPEN",
    "CALLS",
    "CALLS_IN_FLIGHT",
    "CALLS_REFUSED",
    "CALL_SECONDS",
    "CANARY_FALLBACKS",
    "CERTIFICATE_EXPIRY_S",
    "FREE_DESCRIPTORS",
    "GOLDEN_SUCCESS_S",
    "INCOMPLETE_MESSAGES_DROPPED",
    "OUT_OF_SCOPE",
    "PHOTOS",
    "PHOTOS_IN_FLIGHT",
    "PHOTOS_PER_LISTING",
    "RECORDS",
    "SERVING",
    "SHADOWS",
    "STAGE_SECONDS",
    "MetricsFolder",
    "create_series",
]

_PREFIX = "listing_vision_gateway"
_STAGES = ("queue", "decode", "model", "decision")
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EXPECTED_RESULTS = ("OK", "TOO_BUSY", "DEADLINE_TOO_SHORT", "MODEL_UNAVAILABLE", "MODEL_BROKEN", "INTERNAL")
_FOLDER_PREFIX = "listing-vision-metrics-"
_FOLDER_ENV = "PROMETHEUS_MULTIPROC_DIR"

CALLS = prometheus_client.Counter(
    f"{_PREFIX}_calls",
    "Listings by the result of their call and the release that computed it, or was the last to try.",
    ["result", "model_release"],
)
CALL_SECONDS = prometheus_client.Histogram(
    f"{_PREFIX}_call_seconds",
    "Time from the arrival of the whole request to the response.",
    ["result", "model_release"],
    buckets=_BUCKETS_S,
)
STAGE_SECONDS = prometheus_client.Histogram(
    f"{_PREFIX}_stage_seconds",
    "Time of one listing by stage: queue (waiting for the model's capacity), decode (in the gateway), model (Triton, "
    "with decoding if it decodes), decision.",
    ["stage"],
    buckets=_BUCKETS_S,
)
PHOTOS = prometheus_client.Counter(f"{_PREFIX}_photos", "Photos by result: ok, or the reason of the error.", ["result"])
PHOTOS_PER_LISTING = prometheus_client.Histogram(
    f"{_PREFIX}_photos_per_listing", "Photos per call.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 20)
)
OUT_OF_SCOPE = prometheus_client.Counter(
    f"{_PREFIX}_out_of_scope_listings",
    "Listings whose photos show nothing that the taxonomy covers, by release.",
    ["model_release"],
)
FREE_DESCRIPTORS = prometheus_client.Gauge(
    f"{_PREFIX}_free_descriptors",
    "Files and connections that a gateway process may still open; the least of all processes.",
    multiprocess_mode="livemin",
)
GOLDEN_SUCCESS_S = prometheus_client.Gauge(
    f"{_PREFIX}_golden_success_timestamp_seconds",
    "Unix time at which the stable release last answered its golden photo correctly; the earliest of all processes.",
    multiprocess_mode="livemin",
)
PHOTOS_IN_FLIGHT = prometheus_client.Gauge(
    f"{_PREFIX}_photos_in_flight", "Photos that are admitted and have no response yet.", multiprocess_mode="livesum"
)
CALLS_IN_FLIGHT = prometheus_client.Gauge(
    f"{_PREFIX}_calls_in_flight",
    "Calls that have begun, by kind: call, stream, watch.",
    ["kind"],
    multiprocess_mode="livesum",
)
CALLS_REFUSED = prometheus_client.Counter(
    f"{_PREFIX}_calls_refused_at_limit",
    "Calls refused because too many are open, by limit: all, caller, stream, watch.",
    ["limit"],
)
INCOMPLETE_MESSAGES_DROPPED = prometheus_client.Counter(
    f"{_PREFIX}_incomplete_messages_dropped",
    "Messages dropped before their end because such messages took too much memory.",
)
CANARY_FALLBACKS = prometheus_client.Counter(
    f"{_PREFIX}_canary_fallbacks", "Listings of the canary that fell back to the stable release.", ["reason"]
)
SHADOWS = prometheus_client.Counter(
    f"{_PREFIX}_shadows",
    "Listings sent to a shadow: suggestion same as or other than the caller's, failed, or dropped under load.",
    ["result", "model_release"],
)
RECORDS = prometheus_client.Counter(
    f"{_PREFIX}_records",
    "Rows of the tables suggestions, shadows and outcomes: accepted, dropped by a full buffer, delayed by the storage.",
    ["table", "result"],
)
SERVING = prometheus_client.Gauge(
    f"{_PREFIX}_serving", "Gateway processes whose health is SERVING.", multiprocess_mode="livesum"
)
BREAKER_OPEN = prometheus_client.Gauge(
    f"{_PREFIX}_breaker_open", "Gateway processes whose circuit breaker is open.", multiprocess_mode="livesum"
)
# With a label, because a gauge without one is exported as 0 where there is no certificate.
CERTIFICATE_EXPIRY_S = prometheus_client.Gauge(
    f"{_PREFIX}_certificate_expiry_timestamp_seconds",
    "Unix time at which the certificate in use, or one of its chain, expires; the earliest of the gateway processes.",
    ["certificate"],
    multiprocess_mode="livemin",
)


def create_series(model_release: str) -> None:
    """Create the series that rules, dashboards and autoscalers read, at 0: a rate needs a series that begins there."""
    for result in _EXPECTED_RESULTS:
        CALLS.labels(result, model_release)
    CALL_SECONDS.labels("OK", model_release)
    for stage in _STAGES:
        STAGE_SECONDS.labels(stage)
    PHOTOS.labels("ok")


class MetricsFolder:
    """The folder to which the gateway processes of one supervisor write their metrics."""

    def __init__(self) -> None:
        remove_abandoned_folders(_FOLDER_PREFIX)
        # The sockets of the gateway processes are in it too.
        self._folder = TemporaryFolder(_FOLDER_PREFIX, longest_name="4194304.control")
        self.path = self._folder.path
        self.registry = prometheus_client.CollectorRegistry()
        """Registry of all processes, the supervisor's own metrics included."""
        multiprocess.MultiProcessCollector(self.registry, path=str(self.path))

    def build_environment(self) -> Mapping[str, str]:
        """Return the environment variables of a gateway process."""
        return {**os.environ, _FOLDER_ENV: str(self.path)}

    def mark_process_dead(self, pid: int) -> None:
        """Keep the counters of a gateway process that has exited, and drop its gauges."""
        multiprocess.mark_process_dead(pid, path=str(self.path))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)

    def remove(self) -> None:
        self._folder.remove()
