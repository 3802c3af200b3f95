"""Show the progress of a running backfill: a line, Prometheus metrics, and what its threads wait for."""

import logging
import sys
import time
from collections.abc import Callable, Mapping

import prometheus_client
from tqdm import tqdm

from serving.backfill.ledger import Entry
from vision.runtime.wording import format_count

__all__ = ["Progress", "serve_metrics"]

_log = logging.getLogger(__name__)

_LOG_INTERVAL_S = 30.0


def serve_metrics(port: int) -> prometheus_client.CollectorRegistry:
    """Return a registry that is served at a port. Raises OSError: the port is taken."""
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.start_http_server(port, registry=registry)
    return registry


class Progress:
    """Counts committed shards; wait times are those of this process' threads."""

    def __init__(
        self,
        *,
        num_photos: int,
        num_photos_done_before: int,
        wait_times: Callable[[], Mapping[str, float]],
        registry: prometheus_client.CollectorRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        num_photos: photos of the whole job.
        num_photos_done_before: photos of the shards that earlier runs committed.
        wait_times: returns seconds by what threads waited for, since the start.
        registry: where metrics are registered; None: nowhere.
        """
        self._num_photos = num_photos
        self._num_photos_remaining = num_photos - num_photos_done_before
        self._wait_times = wait_times
        self._clock = clock
        self._began_s = self._last_logged_s = clock()
        self.num_photos_done = 0
        self.write_s = 0.0
        registry = registry or prometheus_client.CollectorRegistry()
        counter, gauge = prometheus_client.Counter, prometheus_client.Gauge
        name = "listing_vision_backfill"
        self._photos = counter(f"{name}_photos", "Photos of committed shards.", ["result"], registry=registry)
        self._listings = counter(f"{name}_listings", "Listings of committed shards.", ["result"], registry=registry)
        self._shards = counter(f"{name}_shards", "Committed shards.", registry=registry)
        self._rate = gauge(f"{name}_photos_per_second", "Since the process started.", registry=registry)
        self._remaining = gauge(f"{name}_photos_remaining", "Photos of shards not committed.", registry=registry)
        self._waiting = gauge(
            f"{name}_wait_seconds", "Seconds that threads waited, by what for.", ["stage"], registry=registry
        )
        self._remaining.set(self._num_photos_remaining)
        self._bar = tqdm(
            total=num_photos,
            initial=num_photos_done_before,
            unit=" photos",
            disable=not sys.stderr.isatty(),
            smoothing=0.05,
        )

    def record_shard(self, entry: Entry, *, write_s: float) -> None:
        self.num_photos_done += entry.num_photos
        self.write_s += write_s
        self._num_photos_remaining -= entry.num_photos
        self._photos.labels("ok").inc(entry.num_photos - entry.num_failed_photos)
        for reason, number in entry.errors.items():
            self._photos.labels(reason).inc(number)
        for result, number in entry.results.items():
            self._listings.labels(result).inc(number)
        self._shards.inc()
        self._rate.set(self.photos_per_s)
        self._remaining.set(self._num_photos_remaining)
        for what, seconds in self.wait_times_s().items():
            self._waiting.labels(what).set(seconds)
        self._bar.set_postfix_str(self.wait_summary, refresh=False)
        self._bar.update(entry.num_photos)
        if self._bar.disable and self._clock() - self._last_logged_s > _LOG_INTERVAL_S:
            self._last_logged_s = self._clock()
            _log.info("%s", self)

    def close(self) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        return self._clock() - self._began_s

    @property
    def photos_per_s(self) -> float:
        return self.num_photos_done / max(self.seconds, 1e-9)

    @property
    def eta_s(self) -> float | None:
        return self._num_photos_remaining / self.photos_per_s if self.num_photos_done else None

    def wait_times_s(self) -> dict[str, float]:
        return {**self._wait_times(), "write": self.write_s}

    @property
    def wait_summary(self) -> str:
        """Shares of the waiting time, such as `waiting for decode 63%, read 2%`."""
        wait_times_s = self.wait_times_s()
        total_s = max(sum(wait_times_s.values()), 1e-9)
        ordered = sorted(wait_times_s.items(), key=lambda item: -item[1])
        return "waiting for " + ", ".join(f"{what} {seconds / total_s:.0%}" for what, seconds in ordered)

    def __str__(self) -> str:
        done = self._num_photos - self._num_photos_remaining
        left = "" if self.eta_s is None else f", {self.eta_s / 60:.1f} minutes left"
        counted = f"{done} of {format_count(self._num_photos, 'photo')}"
        return f"{counted}, {self.photos_per_s:.1f} photos/s{left}; {self.wait_summary}"
