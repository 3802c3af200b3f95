"""Load, promote, roll back and unload a release under load; count failed calls and measure p99.

    python -m benchmarks.rollout [--bundle FOLDER] [--rounds 5]

Two gateway processes with their Triton get listings in an open loop at half of their peak. The other release has the
same weights and another calibration version, so that every response can still be checked. `p99_ratio` compares calls
during these steps with those of the quiet seconds before; the new model's processes start on the same cores.
"""

import asyncio
import json
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BUILD, create_parser, write_result
from benchmarks.load import LoadPlan, LoadReport, create_phone_photos, record_expected_responses, run_load
from benchmarks.serving import create_default_bundle, serve_gateway
from serving.processes.control import send_command
from serving.processes.sockets import supervisor_control_path
from vision.bundle import load_bundle, seal_bundle

SHARE_OF_PEAK = 0.5
BASELINE_S = 10.0
DEADLINE_S = 10.0


def copy_with_other_calibration(folder: Path) -> Path:
    """Copy a bundle to one with the same suggestions and another calibration version."""
    copy = BUILD / "rollout" / "bundle"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    bundle = load_bundle(folder)
    certifies = {**bundle.calibration.certifies, "splits": "another"}
    calibration = replace(bundle.calibration, certifies=certifies)
    (copy / "calibration.json").write_text(calibration.to_json())
    seal_bundle(copy, bundle.info)
    return copy


async def measure_round(
    address: str, other: Path, photos: list[bytes], rate_per_s: float, expected: Any
) -> dict[str, Any]:
    port = int(address.rpartition(":")[2])
    stop, took = asyncio.Event(), {}
    plan = LoadPlan(seconds=600, rate_per_s=rate_per_s, deadline_s=DEADLINE_S, warmup_s=0, ramp_s=1)
    began_s = time.monotonic()
    load = asyncio.create_task(run_load(address, plan, photos, expected=expected, stop=stop))
    await asyncio.sleep(BASELINE_S)
    baseline_end_s = time.monotonic() - began_s

    async def do(command: str, **arguments: Any) -> Any:
        at_s = time.monotonic()
        found = await asyncio.to_thread(send_command, supervisor_control_path(port), command, **arguments)
        took[command] = time.monotonic() - at_s
        return found

    release = await do("load", bundle=str(other.resolve()))
    await do("promote", release=release)
    await do("rollback")
    await do("unload", release=release)
    rollout_end_s = time.monotonic() - began_s
    stop.set()
    return {"took_s": took, **summarize_round(await load, baseline_end_s, rollout_end_s)}


def summarize_round(report: LoadReport, baseline_end_s: float, rollout_end_s: float) -> dict[str, Any]:
    latency_ms = (report.ended_s - report.due_s) * 1000
    quiet = latency_ms[(report.due_s > 2) & (report.due_s < baseline_end_s)]
    busy = latency_ms[(report.due_s >= baseline_end_s) & (report.due_s < rollout_end_s)]
    quiet_p99_ms, busy_p99_ms = float(np.percentile(quiet, 99)), float(np.percentile(busy, 99))
    return {
        "calls": len(report.results),
        "failed_calls": len(report.results) - report.count("ok"),
        "statuses": dict(report.status_counts),
        "quiet_p99_ms": quiet_p99_ms,
        "busy_p99_ms": busy_p99_ms,
        "p99_ratio": busy_p99_ms / quiet_p99_ms,
    }


async def measure(address: str, other: Path, photos: list[bytes], num_rounds: int) -> list[dict[str, Any]]:
    expected = await record_expected_responses(address, photos)
    peak = await run_load(address, LoadPlan(seconds=5, num_callers=16, deadline_s=30), photos, expected=expected)
    rounds = []
    for number in range(num_rounds):
        found = await measure_round(address, other, photos, SHARE_OF_PEAK * peak.photos_per_s, expected)
        print(f"round {number + 1}: {json.dumps(found)}", flush=True)
        rounds.append(found)
    return rounds


def main() -> None:
    options = create_parser(__doc__, bundle=None, rounds=5).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    other, photos = copy_with_other_calibration(folder), create_phone_photos()
    with serve_gateway(folder, "--workers", "2") as (address, _):
        rounds = asyncio.run(measure(address, other, photos, options.rounds))
    metrics = {
        "failed_calls": float(sum(found["failed_calls"] for found in rounds)),
        "calls": float(sum(found["calls"] for found in rounds)),
        "p99_ratio": statistics.median(found["p99_ratio"] for found in rounds),
        "quiet_p99_ms": statistics.median(found["quiet_p99_ms"] for found in rounds),
        "busy_p99_ms": statistics.median(found["busy_p99_ms"] for found in rounds),
    }
    write_result("rollout", metrics, {"rounds": rounds, "share_of_peak": SHARE_OF_PEAK})


if __name__ == "__main__":
    main()
