"""What it costs to decode in processes that a photo may crash, against threads of the gateway: side by side.

    python -m benchmarks.isolation [--bundle FOLDER] [--rounds 5] [--seconds 10]

Rounds alternate which is measured first. Each is the gateway with its Triton, started for its turn; 1440x1080 JPEGs,
one a listing, closed loop, answers checked.
"""

import argparse
import asyncio
import statistics
from pathlib import Path

import numpy as np

from benchmarks.common import write_result
from benchmarks.load import LoadPlan, learn_answers, phone_photos, run_load
from benchmarks.serving import default_bundle, gateway

MODES = {"isolated": "--isolate", "threads": "--no-isolate"}
CALLERS = (8, 32)


async def measure(address: str, photos: list[bytes], seconds: float) -> dict[int, tuple[float, float]]:
    """Photos/s and p99 in ms, by number of callers."""
    answers = await learn_answers(address, photos)
    found = {}
    for callers in CALLERS:
        plan = LoadPlan(seconds=seconds, num_callers=callers, deadline_s=30, warmup_s=2)
        report = await run_load(address, plan, photos, answers=answers)
        if set(report.outcomes) != {"OK"}:
            raise SystemExit(f"not every call was answered rightly:\n{report.table()}")
        found[callers] = report.photos_per_s, float(np.percentile(report.latency_ms(), 99))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    folder: Path = options.bundle or default_bundle()
    photos = phone_photos()
    rounds: list[dict[str, dict[int, tuple[float, float]]]] = []
    for number in range(options.rounds):
        measured = {}
        for mode in sorted(MODES, reverse=number % 2 == 1):
            with gateway(folder, MODES[mode]) as (address, _):
                measured[mode] = asyncio.run(measure(address, photos, options.seconds))
            shown = ", ".join(f"{c} callers {rate:.1f}/s p99 {p99:.0f} ms" for c, (rate, p99) in measured[mode].items())
            print(f"round {number + 1}: {mode:<9} {shown}", flush=True)
        rounds.append(measured)
    metrics = {}
    for callers in CALLERS:
        for mode in MODES:
            metrics[f"{mode}_photos_per_s_c{callers}"] = statistics.median(r[mode][callers][0] for r in rounds)
            metrics[f"{mode}_p99_ms_c{callers}"] = statistics.median(r[mode][callers][1] for r in rounds)
        ratios = [r["isolated"][callers][0] / r["threads"][callers][0] for r in rounds]
        metrics[f"price_percent_c{callers}"] = 100 * (1 - statistics.median(ratios))
    write_result("isolation", metrics, {"rounds": rounds, "seconds_each": options.seconds})


if __name__ == "__main__":
    main()
