"""What is seen of a backfill while it runs: a line, Prometheus metrics, and where the time goes."""

import logging
import sys
import time
from collections.abc import Callable, Mapping

import prometheus_client
from tqdm import tqdm

from serving.backfill.ledger import Entry

__all__ = ["Progress", "metrics_at"]

_log = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0


def metrics_at(port: int) -> prometheus_client.CollectorRegistry:
    """A registry that is served there. Raises OSError: the port is taken."""
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.start_http_server(port, registry=registry)
    return registry


class Progress:
    """Counts from the shards that are done; waits are those of this process' threads."""

    def __init__(
        self,
        *,
        num_photos: int,
        num_done_before: int,
        waits: Callable[[], Mapping[str, float]],
        registry: prometheus_client.CollectorRegistry | None = None,
    ) -> None:
        """Args:
        num_photos: of the whole job.
        num_done_before: of these, those of shards that are done already.
        waits: seconds by what was waited for, since the beginning.
        registry: where the metrics go; None: nowhere.
        """
        self._num_photos = num_photos
        self._num_left = num_photos - num_done_before
        self._waits = waits
        self._began_s = self._said_s = time.monotonic()
        self.num_photos_done = 0
        self.write_s = 0.0
        registry = registry or prometheus_client.CollectorRegistry()
        counter, gauge = prometheus_client.Counter, prometheus_client.Gauge
        name = "listing_vision_backfill"
        self._photos = counter(f"{name}_photos", "Photos of shards that are done.", ["result"], registry=registry)
        self._listings = counter(f"{name}_listings", "Listings of shards done.", ["outcome"], registry=registry)
        self._shards = counter(f"{name}_shards", "Shards that are done.", registry=registry)
        self._rate = gauge(f"{name}_photos_per_second", "Since the job was started.", registry=registry)
        self._left = gauge(f"{name}_photos_left", "Photos of shards that are not done.", registry=registry)
        self._waiting = gauge(
            f"{name}_waiting_seconds", "Time that threads waited, by what for.", ["for"], registry=registry
        )
        self._left.set(self._num_left)
        self._bar = tqdm(
            total=num_photos, initial=num_done_before, unit=" photos", disable=not sys.stderr.isatty(), smoothing=0.05
        )

    def done(self, entry: Entry, *, write_s: float) -> None:
        self.num_photos_done += entry.num_photos
        self.write_s += write_s
        self._num_left -= entry.num_photos
        self._photos.labels("used").inc(entry.num_photos - entry.num_failed_photos)
        for reason, number in entry.errors.items():
            self._photos.labels(reason).inc(number)
        for outcome, number in entry.outcomes.items():
            self._listings.labels(outcome).inc(number)
        self._shards.inc()
        self._rate.set(self.photos_per_s)
        self._left.set(self._num_left)
        for what, seconds in self.waited_s().items():
            self._waiting.labels(what).set(seconds)
        self._bar.set_postfix_str(self.waiting, refresh=False)
        self._bar.update(entry.num_photos)
        if self._bar.disable and time.monotonic() - self._said_s > _LOG_EVERY_S:
            self._said_s = time.monotonic()
            _log.info("%s", self)

    def close(self) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def photos_per_s(self) -> float:
        return self.num_photos_done / max(self.seconds, 1e-9)

    @property
    def eta_s(self) -> float | None:
        return self._num_left / self.photos_per_s if self.num_photos_done else None

    def waited_s(self) -> dict[str, float]:
        return {**self._waits(), "write": self.write_s}

    @property
    def waiting(self) -> str:
        """`waiting for decode 63 %, read 2 %`: shares of the time that was waited at all."""
        waited_s = self.waited_s()
        total_s = max(sum(waited_s.values()), 1e-9)
        ordered = sorted(waited_s.items(), key=lambda item: -item[1])
        return "waiting for " + ", ".join(f"{what} {seconds / total_s:.0%}" for what, seconds in ordered)

    def __str__(self) -> str:
        done = self._num_photos - self._num_left
        left = "" if self.eta_s is None else f", {self.eta_s / 60:.1f} minutes left"
        return f"{done} of {self._num_photos} photos, {self.photos_per_s:.1f} photos/s{left}; {self.waiting}"
