"""Check over half an hour that memory does not grow and that every call succeeds.

    python -m benchmarks.soak [--bundle FOLDER] [--minutes 30] [--workers 2]

Calls come in an open loop at 60 % of the throughput of 32 callers. Resident memory of each kind of process is sampled
every five seconds; its slope is a least-squares line after the first five minutes (a sixth of a shorter run).
"""

import asyncio
from pathlib import Path

import numpy as np

from benchmarks.common import create_parser, write_result
from benchmarks.load import LoadPlan, LoadReport, create_phone_photos, record_expected_responses, run_load
from benchmarks.load.processes import sample_memory
from benchmarks.serving import create_default_bundle, serve_gateway

SHARE_OF_PEAK = 0.6
SAMPLE_EVERY_S = 5.0


def compute_slope_percent_per_hour(samples: list[tuple[float, float]], *, after_s: float) -> float:
    seconds, mb = np.array([sample for sample in samples if sample[0] >= after_s]).T
    return float(np.polyfit(seconds, mb, 1)[0] * 3600 / mb.mean() * 100)


async def run_soak(address: str, photos: list[bytes], seconds: float) -> LoadReport:
    expected = await record_expected_responses(address, photos)
    peak = await run_load(address, LoadPlan(seconds=10, num_callers=32, deadline_s=30), photos, expected=expected)
    rate_per_s = SHARE_OF_PEAK * peak.photos_per_s
    print(f"{peak.photos_per_s:.1f} photos/s at 32 callers; {rate_per_s:.1f} calls/s for {seconds / 60:g} minutes")
    plan = LoadPlan(seconds=seconds, rate_per_s=rate_per_s, deadline_s=10, warmup_s=0)
    return await run_load(address, plan, photos, expected=expected)


def main() -> None:
    options = create_parser(__doc__, bundle=None, minutes=30.0, workers=2).parse_args()
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
    slopes = {name: compute_slope_percent_per_hour(found, after_s=after_s) for name, found in samples.items()}
    together = [(s, sum(by_name.values())) for s, by_name in taken]
    for name, slope in slopes.items():
        print(f"{name:<40} {samples[name][-1][1]:8.1f} MB {slope:+7.2f} %/hour")
    metrics = {
        "rss_slope_percent_per_hour": compute_slope_percent_per_hour(together, after_s=after_s),
        "worst_rss_slope_percent_per_hour": max(slopes.values()),
        "minutes": options.minutes,
        "calls": float(len(report.results)),
        "errors": float(len(report.results) - report.count("ok")),
        "p99_ms": float(np.percentile(report.latency_ms(), 99)),
    }
    details = {
        "slopes_percent_per_hour": slopes,
        "statuses": dict(report.status_counts),
        "rss_mb": {name: [(round(s), round(mb, 1)) for s, mb in found[::12]] for name, found in samples.items()},
    }
    write_result("soak", metrics, details)


if __name__ == "__main__":
    main()
