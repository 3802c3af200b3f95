"""Check over two hours that memory does not grow and that every call succeeds.

    python -m benchmarks.soak [--bundle FOLDER] [--minutes 120] [--workers 2]

Calls come in an open loop at 60 % of the throughput of 32 callers. Resident memory of each kind of process is sampled
every five seconds; its slope is that of a least-squares line after the first five minutes (a sixth of a shorter run).
The line is through means of ten minutes, or thirds of a shorter run, whose errors, unlike those of samples, are nearly
independent: its 95 % interval is Student's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.common import create_parser, write_result
from benchmarks.load import LoadPlan, LoadReport, create_phone_photos, record_expected_responses, run_load
from benchmarks.load.processes import sample_memory
from benchmarks.serving import create_default_bundle, serve_gateway

SHARE_OF_PEAK = 0.6
SAMPLE_EVERY_S = 5.0
MEAN_OVER_S = 600.0
MIN_MEANS = 3


@dataclass(frozen=True)
class Slope:
    """Growth of memory, in per cent of its mean and an hour."""

    estimate: float
    low: float
    high: float
    """Ends of the 95 % interval."""


def compute_slope(samples: Sequence[tuple[float, float]], *, after_s: float) -> Slope:
    """Args:
        samples: seconds since the start, and megabytes.
        after_s: earlier samples do not count.

    Raises:
        ValueError: fewer than `MIN_MEANS` samples count.
    """
    counted = np.array([sample for sample in samples if sample[0] >= after_s])
    if len(counted) < MIN_MEANS:
        raise ValueError(f"{len(counted)} samples after {after_s:g} s are too few for a slope; use more --minutes")
    num_means = max(MIN_MEANS, round((counted[-1, 0] - counted[0, 0]) / MEAN_OVER_S))
    hours, mb = np.array([part.mean(axis=0) for part in np.array_split(counted, num_means)]).T / [[3600], [1]]
    line = stats.linregress(hours, mb)
    error = float(stats.t.ppf(0.975, num_means - 2) * line.stderr)
    percent = 100 / counted[:, 1].mean()
    return Slope(*(float(percent * slope) for slope in (line.slope, line.slope - error, line.slope + error)))


async def run_soak(address: str, photos: list[bytes], seconds: float) -> LoadReport:
    expected = await record_expected_responses(address, photos)
    peak = await run_load(address, LoadPlan(seconds=10, num_callers=32, deadline_s=30), photos, expected=expected)
    rate_per_s = SHARE_OF_PEAK * peak.photos_per_s
    print(f"{peak.photos_per_s:.1f} photos/s at 32 callers; {rate_per_s:.1f} calls/s for {seconds / 60:g} minutes")
    plan = LoadPlan(seconds=seconds, rate_per_s=rate_per_s, deadline_s=10, warmup_s=0)
    return await run_load(address, plan, photos, expected=expected)


def main() -> None:
    options = create_parser(__doc__, bundle=None, minutes=120.0, workers=2).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    photos, seconds = create_phone_photos(), options.minutes * 60
    with (
        serve_gateway(folder, "--workers", str(options.workers)) as (address, pids),
        sample_memory(pids, every_s=SAMPLE_EVERY_S) as taken,
    ):
        report = asyncio.run(run_soak(address, photos, seconds))
    print(report.table())
    after_s = min(300.0, seconds / 6)
    names = set().union(*(by_name for _, by_name in taken))
    samples = {name: [(s, by_name[name]) for s, by_name in taken if name in by_name] for name in sorted(names)}
    slopes = {}
    for name, found in samples.items():
        try:
            slopes[name] = compute_slope(found, after_s=after_s)
        except ValueError as error:  # a process that came and went must not cost the run
            print(f"{name}: {error}")
    together = compute_slope([(s, sum(by_name.values())) for s, by_name in taken], after_s=after_s)
    for name, slope in slopes.items():
        print(
            f"{name:<40} {samples[name][-1][1]:8.1f} MB {slope.estimate:+7.2f} %/hour, "
            f"{slope.low:+.2f} to {slope.high:+.2f}"
        )
    metrics = {
        "rss_slope_percent_per_hour": together.estimate,
        "rss_slope_low_percent_per_hour": together.low,
        "rss_slope_high_percent_per_hour": together.high,
        "worst_rss_slope_percent_per_hour": max(slope.estimate for slope in slopes.values()),
        "minutes": options.minutes,
        "calls": float(len(report.results)),
        "errors": float(len(report.results) - report.count("ok")),
        "p99_ms": float(np.percentile(report.latency_ms(), 99)),
    }
    details = {
        "slopes_percent_per_hour": {name: asdict(slope) for name, slope in slopes.items()},
        "statuses": dict(report.status_counts),
        "rss_mb": {name: [(round(s), round(mb, 1)) for s, mb in found[::12]] for name, found in samples.items()},
    }
    write_result("soak", metrics, details)


if __name__ == "__main__":
    main()
