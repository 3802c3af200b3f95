"""Measure the gateway with a Triton that decodes and computes on the card, under load from several processes."""

import asyncio
import json
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.load import LoadPlan, record_expected_responses, run_load
from benchmarks.serving import serve_gateway

__all__ = ["ServiceResult", "measure"]


class ServiceResult(NamedTuple):
    photos_per_s: float
    p50_ms: float
    p99_ms: float
    status_counts: dict[str, int]


class _CallerResult(NamedTuple):
    photos_per_s: float
    latency_ms: npt.NDArray[np.float64]
    status_counts: dict[str, int]


def measure(
    bundle: Path,
    photos: Sequence[bytes],
    folder: Path,
    *,
    backend: str,
    callers: Sequence[int],
    workers: int,
    processes: int,
    seconds: float,
) -> dict[int, ServiceResult]:
    """Measure closed loops of single photos by the number of callers; responses are checked against an idle server's.

    Args:
        bundle: to serve.
        photos: to send.
        folder: for the settings of Triton.
        backend: of the model in Triton.
        callers: who wait for answers, over all processes; a loop for each number.
        workers: gateway processes.
        processes: that send the load, or as many as there are callers.
        seconds: measured in each loop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tuning = folder / f"{backend}.json"
    tuning.write_text(json.dumps({"best": {"backend": backend}}))
    measured = {}
    with (
        serve_gateway(bundle, "--workers", str(workers), "--tuning", str(tuning)) as (address, _),
        # A fork would take this process's CUDA with it.
        ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        expected = asyncio.run(record_expected_responses(address, photos))
        for number in callers:
            shares = [share for i in range(processes) if (share := (number + i) // processes)]
            parts = pool.map(partial(_run_load, address, photos, expected, seconds), shares)
            measured[number] = _merge_results(list(parts))
    return measured


def _merge_results(parts: Sequence[_CallerResult]) -> ServiceResult:
    latency_ms = np.concatenate([part.latency_ms for part in parts])
    status_counts: Counter[str] = Counter()
    for part in parts:
        status_counts.update(part.status_counts)
    return ServiceResult(
        photos_per_s=sum(part.photos_per_s for part in parts),
        p50_ms=float(np.percentile(latency_ms, 50)),
        p99_ms=float(np.percentile(latency_ms, 99)),
        status_counts=dict(status_counts),
    )


def _run_load(address: str, photos: Sequence[bytes], expected: Any, seconds: float, callers: int) -> _CallerResult:
    plan = LoadPlan(seconds=seconds, num_callers=callers, warmup_s=3.0, ramp_s=1.0, deadline_s=30.0, num_connections=16)
    report = asyncio.run(run_load(address, plan, photos, expected=expected))
    return _CallerResult(report.photos_per_s, report.latency_ms(), dict(report.status_counts))
