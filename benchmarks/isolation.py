"""Measure what decoding in processes that a photo may crash costs: four layouts in turns.

    python -m benchmarks.isolation [--bundle FOLDER] [--rounds 5] [--seconds 8]

Photos are decoded in Triton's model processes or in the gateway, each with and without decode workers. Each layout is
the gateway with its Triton, started for its turn; 1440x1080 JPEGs, one per listing, closed loop, responses checked.
"""

import asyncio
import statistics
from pathlib import Path

import numpy as np

from benchmarks.common import create_parser, write_result
from benchmarks.load import LoadPlan, create_phone_photos, record_expected_responses, run_load
from benchmarks.serving import create_default_bundle, serve_gateway

LAYOUTS = {
    "triton_isolated": (),
    "triton_plain": ("--no-isolate",),
    "gateway_isolated": ("--decode-in", "gateway"),
    "gateway_plain": ("--decode-in", "gateway", "--no-isolate"),
}
CALLERS = (8, 32)
RoundResult = dict[int, tuple[float, float]]
"""Photos/s and p99 in ms, by number of callers."""


async def measure(address: str, photos: list[bytes], seconds: float) -> RoundResult:
    expected = await record_expected_responses(address, photos)
    found = {}
    for callers in CALLERS:
        plan = LoadPlan(seconds=seconds, num_callers=callers, deadline_s=30, warmup_s=2)
        report = await run_load(address, plan, photos, expected=expected)
        if set(report.status_counts) != {"OK"}:
            raise SystemExit(f"not every call succeeded:\n{report.table()}")
        found[callers] = report.photos_per_s, float(np.percentile(report.latency_ms(), 99))
    return found


def measure_round(number: int, folder: Path, photos: list[bytes], seconds: float) -> dict[str, RoundResult]:
    names = list(LAYOUTS)
    first = number % len(names)
    measured = {}
    for name in names[first:] + names[:first]:
        with serve_gateway(folder, *LAYOUTS[name]) as (address, _):
            measured[name] = found = asyncio.run(measure(address, photos, seconds))
        shown = ", ".join(f"{c} callers {rate:.1f} photos/s, p99 {p99:.0f} ms" for c, (rate, p99) in found.items())
        print(f"round {number + 1}: {name:<17} {shown}", flush=True)
    return measured


def main() -> None:
    options = create_parser(__doc__, bundle=None, rounds=5, seconds=8.0).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    photos = create_phone_photos()
    rounds = [measure_round(number, folder, photos, options.seconds) for number in range(options.rounds)]
    metrics = {}
    for callers in CALLERS:
        for name in LAYOUTS:
            metrics[f"{name}_photos_per_s_c{callers}"] = statistics.median(r[name][callers][0] for r in rounds)
            metrics[f"{name}_p99_ms_c{callers}"] = statistics.median(r[name][callers][1] for r in rounds)
        for place in ("triton", "gateway"):
            ratios = [r[f"{place}_isolated"][callers][0] / r[f"{place}_plain"][callers][0] for r in rounds]
            metrics[f"{place}_price_percent_c{callers}"] = 100 * (1 - statistics.median(ratios))
    write_result("isolation", metrics, {"rounds": rounds, "seconds_each": options.seconds})


if __name__ == "__main__":
    main()
