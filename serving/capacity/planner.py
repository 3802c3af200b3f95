"""Find the smallest service that keeps a latency, by simulation."""

import math
from dataclasses import dataclass, replace

import numpy as np

from serving.capacity.profile import Profile
from serving.capacity.simulation import Load, Service, SimulationResult, simulate
from vision.errors import ListingVisionError

__all__ = ["Estimate", "Plan", "estimate", "plan"]

NUM_RUNS = 5
NUM_LISTINGS = 20_000
_MAX_SERVERS = 100_000
_MAX_UTILISATION = 0.97
"""Largest share of a queue's time that may be busy; beyond it, waiting has no bound that a run could show."""
_IDLE_EXTRA_SERVERS = 64
"""Added to make an idle service: more servers than a few listings can use at once."""
_T_95 = 2.776
"""Student's t, 4 degrees of freedom, both sides."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    p50_ms: float
    p99_ms: float
    p99_error_ms: float
    """Half of the 95 % confidence interval over the runs."""
    simulation: SimulationResult
    """Result of the last run."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    service: Service
    estimate: Estimate
    bottleneck: str
    """`cores` or `instances`, whichever is used more of its capacity."""


def estimate(
    profile: Profile, load: Load, service: Service, *, num_runs: int = NUM_RUNS, num_listings: int = NUM_LISTINGS
) -> Estimate:
    """Estimate latencies over runs with different seeds."""
    runs = [simulate(profile, load, service, num_listings=num_listings, seed=seed) for seed in range(num_runs)]
    p99_ms = [float(np.percentile(run.latency_ms, 99)) for run in runs]
    error_ms = _T_95 * float(np.std(p99_ms, ddof=1)) / math.sqrt(num_runs) if num_runs > 1 else 0.0
    return Estimate(
        p50_ms=float(np.mean([np.percentile(run.latency_ms, 50) for run in runs])),
        p99_ms=float(np.mean(p99_ms)),
        p99_error_ms=error_ms,
        simulation=runs[-1],
    )


def plan(profile: Profile, load: Load, *, p99_ms: float, service: Service) -> Plan:
    """Return the least cores and instances that keep a p99; both counts of `service` are replaced.

    Raises:
        ListingVisionError: no number of them is fast enough, since even an idle service is not.
    """
    photos_per_s = load.listings_per_s * load.photos_per_listing
    cores = _count_min_servers(photos_per_s * (profile.decode_ms + profile.gateway_ms) / 1000)
    best_ms = min(profile.batch_ms(size) / size for size in (1, *profile.model_ms, service.max_batch) if size > 0)
    instances = _count_min_servers(photos_per_s * best_ms / 1000)
    overprovisioned = replace(service, num_cores=_overprovision(cores), num_instances=_overprovision(instances))
    idle = estimate(profile, load, overprovisioned, num_runs=1)
    if idle.p99_ms > p99_ms:
        raise ListingVisionError(
            f"p99 is {idle.p99_ms:.0f} ms in an idle service, more than {p99_ms:g} ms: use a faster model or cores, "
            "fewer photos a listing, or a longer --p99-ms"
        )
    candidate = replace(service, num_cores=cores, num_instances=instances)
    while True:
        estimated = estimate(profile, load, candidate)
        out = estimated.simulation
        # Load relative to full batches: small ones keep an instance busy long before its capacity is used.
        instance_load = photos_per_s * best_ms / 1000 / candidate.num_instances
        if (
            estimated.p99_ms + estimated.p99_error_ms <= p99_ms
            and max(out.core_utilisation, instance_load) < _MAX_UTILISATION
        ):
            bottleneck = "cores" if out.core_utilisation >= instance_load else "instances"
            return Plan(service=candidate, estimate=estimated, bottleneck=bottleneck)
        if _rank_wait(out.decode_wait_ms, out.core_utilisation) >= _rank_wait(out.model_wait_ms, instance_load):
            candidate = replace(candidate, num_cores=_increase_count(candidate.num_cores))
        else:
            candidate = replace(candidate, num_instances=_increase_count(candidate.num_instances))


def _count_min_servers(load: float) -> int:
    """Return the number of servers that are not busy all the time."""
    needed = max(1, math.ceil(load / _MAX_UTILISATION))
    if needed > _MAX_SERVERS:
        raise ListingVisionError(
            f"{needed} cores or instances are needed, more than {_MAX_SERVERS}: is the rate right?"
        )
    return needed


def _overprovision(count: int) -> int:
    return 4 * count + _IDLE_EXTRA_SERVERS


def _increase_count(count: int) -> int:
    return count + max(1, count // 50)


def _rank_wait(wait_ms: float, utilisation: float) -> float:
    return math.inf if utilisation >= _MAX_UTILISATION else wait_ms
