"""Simulate the service as two queues in a row, each first come, first served.

Cores decode photos, one each; a listing whose photos are all decoded is one request to the model. An instance takes the
waiting requests up to the largest batch and, as Triton's dynamic batcher does, waits until the batch is full or its
first request has waited for the queue delay. First come, first served needs no calendar of events: the times of each
job follow from those before it.
"""

import heapq
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from serving.api.limits import MAX_PHOTOS
from serving.capacity.profile import Profile

__all__ = ["Load", "Service", "SimulationResult", "simulate"]

Floats = npt.NDArray[np.float64]
WARMUP_SHARE = 0.1
"""Share of the listings that is left out, since they find the service empty."""


@dataclass(frozen=True, kw_only=True)
class Load:
    listings_per_s: float
    """Rate of a Poisson process."""
    photos_per_listing: float = 1.0
    """Mean of a geometric distribution from 1 on, cut off at 20."""


@dataclass(frozen=True, kw_only=True)
class Service:
    num_cores: int
    """Cores that decode and do the gateway's work."""
    num_instances: int
    """Instances of the model."""
    max_batch: int = 64
    queue_delay_ms: float = 2.0
    decode_distribution: Literal["fixed", "exponential"] = "fixed"
    """Distribution of decoding times around their mean; photos of one app are alike."""


class SimulationResult(NamedTuple):
    latency_ms: Floats
    """(N,) latency of each listing in the order of arrival, without the first ones."""
    decode_wait_ms: float
    """Mean time that a listing waits for a core."""
    model_wait_ms: float
    """Mean time that a listing waits for an instance."""
    core_utilisation: float
    instance_utilisation: float
    mean_batch: float


def simulate(profile: Profile, load: Load, service: Service, *, num_listings: int, seed: int) -> SimulationResult:
    """Simulate one run of so many listings."""
    random = np.random.default_rng(seed)
    arrivals_ms = np.cumsum(random.exponential(1000 / load.listings_per_s, num_listings))
    num_photos = _sample_num_photos(random, load.photos_per_listing, num_listings)
    decoded_ms, busy_ms, begun_ms = _simulate_decoding(profile, service, arrivals_ms, num_photos, random)
    order = np.argsort(decoded_ms, kind="stable")
    done_ms = np.empty(num_listings)
    starts_ms = np.empty(num_listings)
    batches = _simulate_batching(profile, service, decoded_ms[order], num_photos[order])
    done_ms[order], starts_ms[order] = batches.done_ms, batches.start_ms
    kept = slice(int(WARMUP_SHARE * num_listings), None)
    span_ms = float(done_ms.max() - arrivals_ms[0])
    return SimulationResult(
        latency_ms=(done_ms - arrivals_ms)[kept],
        decode_wait_ms=float((begun_ms - arrivals_ms)[kept].mean()),
        model_wait_ms=float((starts_ms - decoded_ms)[kept].mean()),
        core_utilisation=busy_ms / (span_ms * service.num_cores),
        instance_utilisation=batches.busy_ms / (span_ms * service.num_instances),
        mean_batch=float(num_photos.sum() / batches.num_batches),
    )


def _sample_num_photos(random: Generator, mean: float, size: int) -> npt.NDArray[np.int64]:
    if mean == 1:
        return np.ones(size, np.int64)
    return np.minimum(random.geometric(1 / mean, size), MAX_PHOTOS)


def _simulate_decoding(
    profile: Profile, service: Service, arrivals_ms: Floats, num_photos: npt.NDArray[np.int64], random: Generator
) -> tuple[Floats, float, Floats]:
    """Return when each listing's last photo is decoded, the busy time of all cores, and when its first photo starts."""
    cost_ms = profile.decode_ms + profile.gateway_ms
    fixed = service.decode_distribution == "fixed"
    free_ms = [0.0] * service.num_cores
    decoded_ms, begun_ms, busy_ms = np.empty(len(arrivals_ms)), np.empty(len(arrivals_ms)), 0.0
    for i, (arrival_ms, number) in enumerate(zip(arrivals_ms.tolist(), num_photos.tolist(), strict=True)):
        costs = [cost_ms] * number if fixed else random.exponential(cost_ms, number).tolist()
        last_ms, first_ms = 0.0, math.inf
        for cost in costs:
            start_ms = max(arrival_ms, free_ms[0])
            heapq.heapreplace(free_ms, start_ms + cost)
            last_ms, first_ms = max(last_ms, start_ms + cost), min(first_ms, start_ms)
            busy_ms += cost
        decoded_ms[i], begun_ms[i] = last_ms, first_ms
    return decoded_ms, busy_ms, begun_ms


class _BatchingResult(NamedTuple):
    done_ms: Floats
    start_ms: Floats
    busy_ms: float
    num_batches: int


def _simulate_batching(
    profile: Profile, service: Service, ready_ms: Floats, num_photos: npt.NDArray[np.int64]
) -> _BatchingResult:
    """Batch requests, which are given in the order in which they are ready."""
    ready, sizes = ready_ms.tolist(), num_photos.tolist()
    free_ms = [0.0] * service.num_instances
    done_ms, starts_ms = np.empty(len(ready)), np.empty(len(ready))
    first, busy_ms, num_batches = 0, 0.0, 0
    while first < len(ready):
        earliest_ms = max(free_ms[0], ready[first])
        latest_ms = max(earliest_ms, ready[first] + service.queue_delay_ms)
        last, total, start_ms = first, 0, earliest_ms
        while last < len(ready) and ready[last] <= latest_ms:
            if total and total + sizes[last] > service.max_batch:
                break
            total += sizes[last]
            start_ms = max(start_ms, ready[last])
            last += 1
        if total < service.max_batch and (last == len(ready) or ready[last] > latest_ms):
            start_ms = latest_ms  # the queue delay is over before the batch is full
        cost_ms = profile.batch_ms(total)
        heapq.heapreplace(free_ms, start_ms + cost_ms)
        done_ms[first:last], starts_ms[first:last] = start_ms + cost_ms, start_ms
        busy_ms, num_batches, first = busy_ms + cost_ms, num_batches + 1, last
    return _BatchingResult(done_ms, starts_ms, busy_ms, num_batches)
