"""Compare the capacity simulation with the real gateway and Triton, and plan machines from measured costs.

    python -m benchmarks.capacity [--bundle FOLDER] [--seconds 20]

Load comes in an open loop at shares of the throughput of 32 callers. On a CPU the cores do all the work (decoding, the
model, serving), so the simulation gets their number and the cost of a photo that follows from the peak; it must predict
how waiting grows with load. Plans for GPUs take the rates of the model and of decoding (16 cores, one process) from
benchmarks/results/gpu.json.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, create_parser, write_result
from benchmarks.load import LoadPlan, LoadReport, create_phone_photos, record_expected_responses, run_load
from benchmarks.serving import create_default_bundle, serve_gateway
from serving.capacity import DEFAULT_GATEWAY_MS
from serving.capacity.planner import estimate, plan
from serving.capacity.profile import Profile
from serving.capacity.simulation import Load, Service

LOAD_SHARES = (0.3, 0.5, 0.7, 0.85)
GPU_CORES = 16


Reports = dict[float, LoadReport]


async def measure_service(address: str, photos: list[bytes], seconds: float) -> tuple[LoadReport, LoadReport, Reports]:
    """Measure one caller, 32 callers, and the open loops."""
    expected = await record_expected_responses(address, photos)

    async def loop(plan: LoadPlan) -> LoadReport:
        return await run_load(address, plan, photos, expected=expected)

    alone = await loop(LoadPlan(seconds=5, num_callers=1, deadline_s=30))
    peak = await loop(LoadPlan(seconds=seconds / 2, num_callers=32, deadline_s=30))
    reports = {}
    for share in LOAD_SHARES:
        plan = LoadPlan(seconds=seconds, rate_per_s=share * peak.photos_per_s, deadline_s=10, warmup_s=2)
        reports[share] = await loop(plan)
    return alone, peak, reports


def compare_latencies(peak: LoadReport, alone: LoadReport, reports: Reports) -> dict[str, Any]:
    """Return simulated and measured latencies of each share."""
    cores = len(os.sched_getaffinity(0))
    cost_ms = 1000 * cores / peak.photos_per_s
    # Time of a call beside the work of the cores: transport.
    extra_ms = max(0.0, float(np.percentile(alone.latency_ms(), 50)) - cost_ms)
    profile = Profile(machine="this one", decode_ms=cost_ms, model_ms={1: 0.0, 64: 0.0}, gateway_ms=0.0)
    service = Service(num_cores=cores, num_instances=64, queue_delay_ms=0)
    rows = {}
    for share, report in reports.items():
        made = estimate(profile, Load(listings_per_s=share * peak.photos_per_s), service)
        p50_ms, p99_ms = (float(value) for value in np.percentile(report.latency_ms(), (50, 99)))
        rows[f"{share:g}"] = {
            "calls_per_s": round(share * peak.photos_per_s, 1),
            "answered_share": report.count("ok") / len(report.results),
            "measured_p50_ms": p50_ms,
            "measured_p99_ms": p99_ms,
            "simulated_p50_ms": made.p50_ms + extra_ms,
            "simulated_p99_ms": made.p99_ms + extra_ms,
        }
    return {"cost_ms_per_photo": cost_ms, "cores": cores, "extra_ms": extra_ms, "by_share": rows}


def create_gpu_profile() -> Profile:
    result = json.loads((RESULTS / "gpu.json").read_text())
    rates = result["details"]["model_photos_per_s"]["fp16"]
    decoded = result["metrics"]["decode_on_cores_photos_per_s"]
    return Profile(
        machine=f"{result['machine']['gpu']}, {result['machine']['cores']} cores, fp16",
        decode_ms=1000 * GPU_CORES / decoded,
        model_ms={int(size): 1000 * int(size) / rate for size, rate in rates.items()},
        gateway_ms=DEFAULT_GATEWAY_MS,
        photo="JPEG 1440x1080, 300 KB",
    )


def plan_machines(profile: Profile, load: Load, *, p99_ms: float) -> dict[str, Any]:
    made = plan(profile, load, p99_ms=p99_ms, service=Service(num_cores=1, num_instances=1))
    return {
        "cores": made.service.num_cores,
        "gateways_of_16_cores": -(-made.service.num_cores // GPU_CORES),
        "instances": made.service.num_instances,
        "p50_ms": round(made.estimate.p50_ms, 1),
        "p99_ms": round(made.estimate.p99_ms, 1),
        "mean_batch": round(made.estimate.simulation.mean_batch, 1),
        "core_utilisation": round(made.estimate.simulation.core_utilisation, 3),
        "bottleneck": made.bottleneck,
    }


def plan_backfill(profile: Profile, *, num_photos: float, hours: float) -> dict[str, float]:
    """Return the machines for a backfill, which has no latency target and may use all capacity."""
    per_s = num_photos / (hours * 3600)
    best = max(size / ms for size, ms in profile.model_ms.items()) * 1000
    decoding = 1000 / profile.decode_ms
    return {"photos_per_s": per_s, "cores": float(-(-per_s // decoding)), "gpus": float(-(-per_s // best))}


def main() -> None:
    options = create_parser(__doc__, bundle=None, seconds=20.0).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    with serve_gateway(folder, "--workers", str(len(os.sched_getaffinity(0)))) as (address, _):
        alone, peak, reports = asyncio.run(measure_service(address, create_phone_photos(), options.seconds))
    found = compare_latencies(peak, alone, reports)
    for share, row in found["by_share"].items():
        print(
            f"{share} of the peak: p50 {row['measured_p50_ms']:.0f} ms (simulated {row['simulated_p50_ms']:.0f}), "
            f"p99 {row['measured_p99_ms']:.0f} ms (simulated {row['simulated_p99_ms']:.0f})"
        )
    profile = create_gpu_profile()
    upload = plan_machines(profile, Load(listings_per_s=1000, photos_per_listing=4), p99_ms=300)
    backfill = plan_backfill(profile, num_photos=1e8, hours=8)
    ratios = [row["simulated_p99_ms"] / row["measured_p99_ms"] for row in found["by_share"].values()]
    metrics = {
        "peak_photos_per_s": peak.photos_per_s,
        "simulated_to_measured_p99_least": min(ratios),
        "simulated_to_measured_p99_most": max(ratios),
        "cores_for_1000_listings_per_s": float(upload["cores"]),
        "gpus_for_1000_listings_per_s": float(upload["instances"]),
        "cores_for_100_million_photos": backfill["cores"],
        "gpus_for_100_million_photos": backfill["gpus"],
    }
    details = {"check": found, "profile": profile.__dict__, "upload": upload, "backfill": backfill}
    write_result("capacity", metrics, details)


if __name__ == "__main__":
    main()
