"""The least service that keeps a latency, by simulation."""

import math
from dataclasses import dataclass, replace

import numpy as np

from serving.capacity.profile import Profile
from serving.capacity.simulation import Load, Outcome, Service, simulate
from vision.errors import ListingVisionError

__all__ = ["Estimate", "Plan", "estimate", "plan"]

NUM_RUNS = 5
NUM_LISTINGS = 20_000
_MOST = 100_000
_FULL = 0.97
"""Of a station's time: beyond, waiting has no bound that a run could show."""
_MAX_AT_ONCE = 64
"""More servers than a few listings can use at once."""
_T_95 = 2.776
"""Student's t, 4 degrees of freedom, both sides."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    p50_ms: float
    p99_ms: float
    p99_error_ms: float
    """Half of the 95 % interval over the runs."""
    outcome: Outcome
    """Of the last run."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    service: Service
    estimate: Estimate
    bottleneck: str
    """`cores` or `instances`: of which more of what they could carry is used."""


def estimate(
    profile: Profile, load: Load, service: Service, *, num_runs: int = NUM_RUNS, num_listings: int = NUM_LISTINGS
) -> Estimate:
    """Over runs of different seeds."""
    outcomes = [simulate(profile, load, service, num_listings=num_listings, seed=seed) for seed in range(num_runs)]
    p99_ms = [float(np.percentile(outcome.latency_ms, 99)) for outcome in outcomes]
    error_ms = _T_95 * float(np.std(p99_ms, ddof=1)) / math.sqrt(num_runs) if num_runs > 1 else 0.0
    return Estimate(
        p50_ms=float(np.mean([np.percentile(outcome.latency_ms, 50) for outcome in outcomes])),
        p99_ms=float(np.mean(p99_ms)),
        p99_error_ms=error_ms,
        outcome=outcomes[-1],
    )


def plan(profile: Profile, load: Load, *, p99_ms: float, service: Service) -> Plan:
    """The least cores and instances; both counts of `service` are found here.

    Raises:
        ListingVisionError: no number of them is fast enough, since an idle service is not.
    """
    photos_per_s = load.listings_per_s * load.photos_per_listing
    cores = _least(photos_per_s * (profile.decode_ms + profile.gateway_ms) / 1000)
    best_ms = min(profile.batch_ms(size) / size for size in (1, *profile.model_ms, service.max_batch) if size > 0)
    instances = _least(photos_per_s * best_ms / 1000)
    ample = replace(service, num_cores=_ample(cores), num_instances=_ample(instances))
    idle = estimate(profile, load, ample, num_runs=1)
    if idle.p99_ms > p99_ms:
        raise ListingVisionError(
            f"p99 is {idle.p99_ms:.0f} ms even where nothing waits, more than {p99_ms:g} ms: a faster model or cores, "
            "fewer photos a listing, or more time is needed"
        )
    found = replace(service, num_cores=cores, num_instances=instances)
    while True:
        made = estimate(profile, load, found)
        out = made.outcome
        # Of what full batches would carry: small ones keep an instance busy long before it is full.
        carried = photos_per_s * best_ms / 1000 / found.num_instances
        if made.p99_ms + made.p99_error_ms <= p99_ms and max(out.core_utilisation, carried) < _FULL:
            bottleneck = "cores" if out.core_utilisation >= carried else "instances"
            return Plan(service=found, estimate=made, bottleneck=bottleneck)
        if _worse(out.decode_wait_ms, out.core_utilisation) >= _worse(out.model_wait_ms, carried):
            found = replace(found, num_cores=_more(found.num_cores))
        else:
            found = replace(found, num_instances=_more(found.num_instances))


def _least(load: float) -> int:
    """Servers that are not busy all the time."""
    needed = max(1, math.ceil(load / _FULL))
    if needed > _MOST:
        raise ListingVisionError(f"{needed} cores or instances are needed, more than {_MOST}: is the rate right?")
    return needed


def _ample(count: int) -> int:
    return 4 * count + _MAX_AT_ONCE


def _more(count: int) -> int:
    return count + max(1, count // 50)


def _worse(wait_ms: float, utilisation: float) -> float:
    return math.inf if utilisation >= _FULL else wait_ms
