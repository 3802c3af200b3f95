"""Measure what a canary and a shadow cost other calls, and the share of listings that a shadow classifies.

    python -m benchmarks.shadow [--bundle FOLDER] [--rounds 3] [--seconds 8]

A gateway with its Triton has a second release loaded, with the same weights and another calibration version, so that
every response can still be checked. Each round measures three set-ups in rotating order: the release alone; a canary
for half of the listings; a shadow for all of them. Each runs in an open loop at a quarter and at a half of the peak,
and in a closed loop with 32 callers. Ratios are taken within rounds, to the release alone. All models compute on the
same cores. `seen` is the share of listings that the shadow classified; the others were dropped.
"""

import asyncio
import re
import statistics
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common import BUILD, create_parser, write_result
from benchmarks.load import CALL_RESULTS, LoadPlan, create_phone_photos, record_expected_responses, run_load
from benchmarks.rollout import copy_with_other_calibration
from benchmarks.serving import create_default_bundle, serve_gateway
from serving.processes.control import send_command
from serving.processes.sockets import supervisor_control_path

SCENARIOS = ("alone", "canary", "shadow")
_DEADLINE_S = 30.0


def create_load_plans(peak_photos_per_s: float, seconds: float) -> dict[str, LoadPlan]:
    by_rate = {"quarter": 0.25, "half": 0.5}
    open_loops = {
        name: LoadPlan(seconds=seconds, rate_per_s=share * peak_photos_per_s, deadline_s=_DEADLINE_S, ramp_s=1)
        for name, share in by_rate.items()
    }
    return {**open_loops, "c32": LoadPlan(seconds=seconds, num_callers=32, deadline_s=_DEADLINE_S, ramp_s=1)}


def read_shadow_counts(url: str) -> dict[str, float]:
    """Return the number of listings for the shadow by result."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    counts: dict[str, float] = defaultdict(float)
    for family in families:
        for sample in family.samples:
            if sample.name == "listing_vision_gateway_shadows_total":
                counts[sample.labels["result"]] += sample.value
    return counts


async def measure(address: str, url: str, other: Path, photos: list[bytes], rounds: int, seconds: float) -> Any:
    port = int(address.rpartition(":")[2])

    async def do(command: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(send_command, supervisor_control_path(port), command, **arguments)

    expected = await record_expected_responses(address, photos)
    peak = await run_load(
        address, LoadPlan(seconds=5, num_callers=16, deadline_s=_DEADLINE_S), photos, expected=expected
    )
    release = await do("load", bundle=str(other.resolve()))
    plans = create_load_plans(peak.photos_per_s, seconds)
    found: list[dict[str, dict[str, dict[str, float]]]] = []
    for number in range(rounds):
        of_round: dict[str, dict[str, dict[str, float]]] = {}
        for way in (*SCENARIOS[number % len(SCENARIOS) :], *SCENARIOS[: number % len(SCENARIOS)]):
            if way == "canary":
                await do("set_canary", release=release, share=0.5)
            elif way == "shadow":
                await do("set_shadow", release=release, share=1.0)
            of_round[way] = {}
            for name, plan in plans.items():
                before = read_shadow_counts(url)
                report = await run_load(address, plan, photos, expected=expected)
                after = read_shadow_counts(url)
                latency_ms = report.latency_ms()
                offered = {result: after[result] - before[result] for result in after}
                seen = offered.get("same", 0) + offered.get("different", 0)
                of_round[way][name] = {
                    "photos_per_s": report.photos_per_s,
                    "p50_ms": float(np.percentile(latency_ms, 50)),
                    "p99_ms": float(np.percentile(latency_ms, 99)),
                    "failed": float(sum(report.count(ending) for ending in CALL_RESULTS if ending != "ok")),
                }
                if way == "shadow":
                    of_round[way][name]["seen"] = seen / sum(offered.values())
                print(f"round {number + 1}: {way:<8} {name:<8} {of_round[way][name]}", flush=True)
            for part in ("canary", "shadow"):
                await do(f"{part}_off")
        found.append(of_round)
    return found


def compute_metrics(rounds: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for way in SCENARIOS[1:]:
        for name in rounds[0][way]:
            for figure in ("p50_ms", "p99_ms", "photos_per_s"):
                ratios = [of_round[way][name][figure] / of_round["alone"][name][figure] for of_round in rounds]
                metrics[f"{way}_{figure.removesuffix('_ms')}_ratio_{name}"] = statistics.median(ratios)
    for name in rounds[0]["shadow"]:
        metrics[f"shadow_seen_{name}"] = statistics.median(of_round["shadow"][name]["seen"] for of_round in rounds)
    metrics["failed_calls"] = sum(
        figures["failed"] for of_round in rounds for by_load in of_round.values() for figures in by_load.values()
    )
    return metrics


def main() -> None:
    options = create_parser(__doc__, bundle=None, rounds=3, seconds=8.0).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    other, photos = copy_with_other_calibration(folder), create_phone_photos()
    outcomes = BUILD / "shadow" / "outcomes"
    with serve_gateway(folder, "--status-port", "0", "--outcomes", str(outcomes)) as (address, _):
        log = (BUILD / "serving" / "serve.log").read_text()
        url = re.findall(r"metrics and health at (\S+)", log)[-1]
        rounds = asyncio.run(measure(address, url, other, photos, options.rounds, options.seconds))
    write_result("shadow", compute_metrics(rounds), {"rounds": rounds})


if __name__ == "__main__":
    main()
