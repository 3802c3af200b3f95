"""Compare the gateway with its Triton, and other servers of the same model, with the model called in one process.

    python -m benchmarks.serving [--bundle FOLDER] [--rounds 5] [--seconds 10] [--no-peers]

Photos are 1440x1080 JPEGs of 300 KB, one per listing (`listing4`: four); responses are checked. Load comes from this
process over real connections in a closed loop; client and server share the cores, so that the client costs every server
the same. Each round measures all servers in rotating order; ratios are taken within rounds. A server is started for its
turn and stopped after it: even an idle gateway checks its model every second, which would slow the others, and what
varies between starts is sampled in each round.
"""

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BUILD, ROOT, create_parser, run_cli, write_result
from benchmarks.load import Connect, LoadPlan, connect_grpc, create_phone_photos, record_expected_responses, run_load
from benchmarks.load.processes import CpuMeter, measure_resident_mb
from benchmarks.peers.environment import FRAMEWORKS, prepare_peer_python
from benchmarks.peers.servers import PEERS, serve_peer
from vision.bundle import Bundle, load_bundle
from vision.engine import OnnxEngine
from vision.images import prepare_photo

__all__ = ["create_default_bundle", "create_phone_photos", "measure_ceiling", "measure_resident_mb", "serve_gateway"]

GATEWAY = "gateway"
_WARMUP_S = 2.0
_RAMP_S = 1.0
"""Time over which connections are opened: those opened at once are mostly accepted by one of several processes."""
_DEADLINE_S = 30.0


@dataclass(frozen=True)
class _Load:
    name: str
    num_callers: int
    num_photos_per_listing: int = 1


_GATEWAY_LOADS = (_Load("c1", 1), _Load("c8", 8), _Load("c32", 32), _Load("listing4", 8, 4))
_PEER_LOADS = (_Load("c8", 8), _Load("c32", 32))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Result of one load on one server in one round."""

    photos_per_s: float
    latency_ms: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    cpu_ms_per_photo: dict[str, float]
    rss_mb: float

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latency_ms, percent))


def create_default_bundle() -> Path:
    """Train and export a model of the served size; its accuracy does not matter here."""
    here = BUILD / "serving"
    if not (here / "bundle").exists():
        recipe = here / "recipe.toml"
        here.mkdir(parents=True, exist_ok=True)
        recipe.write_text("input_px = 224\n[[stages]]\nphoto_px = 64\nepochs = 1\n")
        run_cli("data", "synthesize", "--output", here / "data", "--train-listings", 60, "--val-listings", 60)
        run_cli("train", here / "data" / "manifest.parquet", "--recipe", recipe, "--run", here / "run")
        run_cli("export", here / "run", "--output", here / "bundle")
    return here / "bundle"


def measure_ceiling(bundle: Bundle, engines: list[OnnxEngine], photos: list[bytes], seconds: float) -> float:
    """Return photos/s of decode and model on one thread per core, with nothing between them."""

    def work(engine: OnnxEngine, first: int) -> int:
        done = 0
        while time.monotonic() < deadline:
            photo = prepare_photo(photos[(first + done) % len(photos)], bundle.info.preprocessing)
            engine.infer(photo[None])
            done += 1
        return done

    with ThreadPoolExecutor(len(engines)) as pool:
        started_s = time.monotonic()
        deadline = started_s + seconds
        done = sum(pool.map(work, engines, range(0, len(photos), len(photos) // len(engines))))
        return done / (time.monotonic() - started_s)


@contextmanager
def serve_gateway(bundle: Path, *options: str) -> Iterator[tuple[str, list[int]]]:
    """Serve a bundle; yield the address, and the pids of the gateway and its Triton.

    Args:
        options: further options of `listing-vision serve`.
    """
    log_path = BUILD / "serving" / "serve.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "listing_vision", "serve", str(bundle), "--port", "0", *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        while not (found := re.search(r"listening on (\S+)", log_path.read_text())):
            if process.poll() is not None:
                raise SystemExit(log_path.read_text())
            time.sleep(0.1)
        if "in this process instead of Triton" in log_path.read_text():
            raise SystemExit("this machine has no Triton to measure; `listing-vision triton install`")
        triton_pids = map(int, re.findall(r"Triton \(pid (\d+)\)", log_path.read_text()))
        yield found.group(1), [process.pid, *triton_pids]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _measure(server: str, bundle: Path, photos: list[bytes], seconds: float) -> dict[str, _Measured]:
    """Start a server, measure its loads, and stop it."""
    measured = {}
    with serve_gateway(bundle) if server == GATEWAY else serve_peer(server, bundle) as (address, pids):
        for load in _GATEWAY_LOADS if server == GATEWAY else _PEER_LOADS:
            measured[load.name] = found = asyncio.run(_measure_load(server, address, pids, load, photos, seconds))
            print(
                f"  {server:<10} {load.name:<8} {found.photos_per_s:6.1f} photos/s, p50 {found.percentile_ms(50):4.0f} "
                f"ms, p99 {found.percentile_ms(99):4.0f} ms; processor ms/photo {found.cpu_ms_per_photo}",
                flush=True,
            )
    return measured


async def _measure_load(
    server: str, address: str, pids: Sequence[int], load: _Load, photos: list[bytes], seconds: float
) -> _Measured:
    connect: Connect = connect_grpc if server == GATEWAY else PEERS[server].connect
    plan = LoadPlan(
        seconds=seconds,
        num_callers=load.num_callers,
        num_photos_per_listing=load.num_photos_per_listing,
        warmup_s=_WARMUP_S,
        ramp_s=_RAMP_S,
        deadline_s=_DEADLINE_S,
    )
    expected = await record_expected_responses(
        address, photos, num_photos_per_listing=load.num_photos_per_listing, connect=connect
    )
    meter = CpuMeter(pids)
    report = await run_load(address, plan, photos, expected=expected, connect=connect)
    spent_ms = meter.read_ms_by_name() | {"the load generator": report.generator_cpu_s * 1000}
    if set(report.status_counts) != {"OK"}:
        raise SystemExit(f"{server} failed or gave a wrong response to some calls:\n{report.table()}")
    num_photos = int(report.num_photos.sum())
    return _Measured(
        photos_per_s=report.photos_per_s,
        latency_ms=report.latency_ms(),
        cpu_ms_per_photo={name: round(ms / num_photos, 2) for name, ms in spent_ms.items()},
        rss_mb=measure_resident_mb(pids),
    )


@dataclass(frozen=True, kw_only=True)
class _Round:
    ceiling_photos_per_s: float
    ceiling_cpu_ms_per_photo: float
    servers: dict[str, dict[str, _Measured]]
    """Results by server and load."""


def _rounds(folder: Path, photos: list[bytes], *, servers: list[str], num_rounds: int, seconds: float) -> list[_Round]:
    bundle = load_bundle(folder)
    engines = [OnnxEngine(bundle, num_threads=1) for _ in os.sched_getaffinity(0)]
    for engine in engines:
        engine.infer(bundle.golden.photos_nhwc[:1])
    rounds = []
    for number in range(num_rounds):
        cpu_s = time.process_time()
        top = measure_ceiling(bundle, engines, photos, seconds)
        cpu_ms = (time.process_time() - cpu_s) * 1000 / (top * seconds)
        print(f"round {number + 1}: in process {top:.1f} photos/s; processor ms/photo {cpu_ms:.2f}", flush=True)
        first = number % len(servers)
        measured = {server: _measure(server, folder, photos, seconds) for server in servers[first:] + servers[:first]}
        rounds.append(_Round(ceiling_photos_per_s=top, ceiling_cpu_ms_per_photo=cpu_ms, servers=measured))
    return rounds


def _metrics(rounds: Sequence[_Round]) -> dict[str, float]:
    ceilings = [done.ceiling_photos_per_s for done in rounds]
    metrics = {"ceiling_photos_per_s": statistics.median(ceilings)}
    for server, loads in rounds[0].servers.items():
        for load in loads:
            each = [done.servers[server][load] for done in rounds]
            rates = [measured.photos_per_s for measured in each]
            ratios = [rate / top for rate, top in zip(rates, ceilings, strict=True)]
            latency_ms = np.concatenate([measured.latency_ms for measured in each])
            found = {
                "photos_per_s": statistics.median(rates),
                "ratio_to_ceiling": statistics.median(ratios),
                "p50_ms": float(np.percentile(latency_ms, 50)),
                "p99_ms": float(np.percentile(latency_ms, 99)),
            }
            metrics |= {_metric(server, load, name): value for name, value in found.items()}
    for load in (load.name for load in _PEER_LOADS):
        p99_ms = [{server: loads[load].percentile_ms(99) for server, loads in done.servers.items()} for done in rounds]
        if len(p99_ms[0]) > 1:
            metrics[f"p99_ratio_to_best_peer_{load}"] = statistics.median(
                done[GATEWAY] / min(value for server, value in done.items() if server != GATEWAY) for done in p99_ms
            )
    metrics["rss_mb"] = max(measured.rss_mb for done in rounds for measured in done.servers[GATEWAY].values())
    return metrics


def _metric(server: str, load: str, name: str) -> str:
    """Return a name such as `p99_ms_c8`, `listing4_p99_ms` or `litserve_p99_ms_c8`."""
    if server != GATEWAY:
        return f"{server}_{name}_{load}"
    return f"{name}_{load}" if load.startswith("c") else f"{load}_{name}"


def _list_by_round(rounds: Sequence[_Round]) -> dict[str, Any]:
    return {
        f"{server} {load}": [
            {
                "photos_per_s": round(measured.photos_per_s, 2),
                "p50_ms": round(measured.percentile_ms(50), 1),
                "p99_ms": round(measured.percentile_ms(99), 1),
                "rss_mb": round(measured.rss_mb),
                "cpu_ms_per_photo": measured.cpu_ms_per_photo,
            }
            for measured in (done.servers[server][load] for done in rounds)
        ]
        for server, loads in rounds[0].servers.items()
        for load in loads
    }


def main() -> None:
    parser = create_parser(__doc__, bundle=None, rounds=5, seconds=10.0)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    folder: Path = options.bundle or create_default_bundle()
    servers = [GATEWAY, *(PEERS if options.peers else ())]
    if options.peers:
        prepare_peer_python()
    photos, load_average = create_phone_photos(), os.getloadavg()[0]
    rounds = _rounds(folder, photos, servers=servers, num_rounds=options.rounds, seconds=options.seconds)
    info = load_bundle(folder).info
    details = {
        "photo": f"JPEG 1440x1080, {statistics.mean(map(len, photos)) / 1000:.0f} KB on average",
        "model": f"{info.backbone} at {info.preprocessing.input_px} px, {info.precision}",
        "ceiling": "decode and ONNX Runtime on a thread a core in one process",
        "peers": FRAMEWORKS,
        "seconds_each": options.seconds,
        "load_average_before": load_average,
        "ceiling_photos_per_s": [done.ceiling_photos_per_s for done in rounds],
        "ceiling_cpu_ms_per_photo": [round(done.ceiling_cpu_ms_per_photo, 2) for done in rounds],
        "by_round": _list_by_round(rounds),
    }
    write_result("serving", _metrics(rounds), details)


if __name__ == "__main__":
    main()
