"""Measure goodput, latency of accepted calls and memory at up to three times the peak load.

    python -m benchmarks.overload [--bundle FOLDER] [--rounds 3] [--seconds 20]

Each round first finds the peak, 32 callers in a closed loop, then sends calls in an open loop at multiples of it, each
with a deadline of two seconds, counted from when it was due. Goodput is the photos of correct responses in time.
Generator, gateway and Triton share the machine, so that rejecting calls costs throughput, and so does sending them: the
generator's share of all cores stands beside.
"""

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import create_parser, write_result
from benchmarks.load import (
    ExpectedResponse,
    LoadPlan,
    LoadReport,
    create_phone_photos,
    record_expected_responses,
    run_load,
)
from benchmarks.load.processes import sample_memory
from benchmarks.serving import create_default_bundle, serve_gateway
from vision.runtime.cpus import count_usable_cores

DEADLINE_S = 2.0
MULTIPLES = (0.7, 1.5, 3.0)
WARMUP_S = 5.0
"""Warm-up in which the gateway estimates its throughput and queues fill."""


async def measure_peak(
    address: str, photos: list[bytes], expected: Sequence[ExpectedResponse], seconds: float
) -> float:
    plan = LoadPlan(seconds=seconds, num_callers=32, deadline_s=30, warmup_s=2)
    return (await run_load(address, plan, photos, expected=expected)).photos_per_s


async def run_overload(
    address: str, photos: list[bytes], expected: Sequence[ExpectedResponse], *, rate_per_s: float, seconds: float
) -> LoadReport:
    plan = LoadPlan(
        seconds=seconds, rate_per_s=rate_per_s, deadline_s=DEADLINE_S, warmup_s=WARMUP_S, max_in_flight=4096
    )
    return await run_load(address, plan, photos, expected=expected)


def measure_round(folder: Path, photos: list[bytes], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with serve_gateway(folder) as (address, pids):
        expected = asyncio.run(record_expected_responses(address, photos))
        found["peak_photos_per_s"] = top = asyncio.run(measure_peak(address, photos, expected, seconds))
        print(f"  peak {top:.1f} photos/s", flush=True)
        for multiple in MULTIPLES:
            with sample_memory(pids, every_s=1) as samples:
                report = asyncio.run(
                    run_overload(address, photos, expected, rate_per_s=multiple * top, seconds=seconds)
                )
            resident_mb = [sum(by_name.values()) for _, by_name in samples]
            settled = resident_mb[int(WARMUP_S) :]
            half = len(settled) // 2
            accepted, refused = report.latency_ms("ok"), report.latency_ms("refused")
            found[f"{multiple:g}x"] = here = {
                "goodput_photos_per_s": report.photos_per_s,
                "goodput_ratio": report.photos_per_s / top,
                "accepted_p50_ms": float(np.percentile(accepted, 50)),
                "accepted_p99_ms": float(np.percentile(accepted, 99)),
                "refused_p99_ms": float(np.percentile(refused, 99)) if len(refused) else 0.0,
                "generator_cpu_share": report.generator_cpu_s / ((WARMUP_S + seconds) * count_usable_cores()),
                "rss_growth_percent": 100 * (statistics.mean(settled[half:]) / statistics.mean(settled[:half]) - 1),
                "rss_max_mb": max(resident_mb),
                "statuses": dict(report.status_counts),
                "wrong_or_hung": report.count("wrong") + report.count("hung"),
                "not_sent": report.count("not_sent"),
            }
            print(f"  {multiple:g}x: " + ", ".join(f"{k} {v:.4g}" for k, v in here.items() if k != "statuses"))
            print(f"       {here['statuses']}", flush=True)
    return found


def main() -> None:
    options = create_parser(__doc__, bundle=None, rounds=3, seconds=20.0).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    photos = create_phone_photos()
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1}", flush=True)
        rounds.append(measure_round(folder, photos, options.seconds))
    metrics = {"peak_photos_per_s": statistics.median(r["peak_photos_per_s"] for r in rounds)}
    for multiple in MULTIPLES:
        name = f"{multiple:g}x"
        for key in ("goodput_ratio", "accepted_p99_ms", "refused_p99_ms", "generator_cpu_share", "rss_growth_percent"):
            metrics[f"{key}_{name}"] = statistics.median(r[name][key] for r in rounds)
    metrics["wrong_or_hung_calls"] = sum(r[f"{m:g}x"]["wrong_or_hung"] for r in rounds for m in MULTIPLES)
    write_result("overload", metrics, {"deadline_ms": DEADLINE_S * 1000, "rounds": rounds})


if __name__ == "__main__":
    main()
