"""Compare the gateway with its Triton, and other servers of the same model, with the model called in one process.

    python -m benchmarks.serving [--bundle FOLDER] [--rounds 5] [--seconds 10] [--no-peers] [--before CHECKOUT]

Photos are 1440x1080 JPEGs of 300 KB, one per listing (`listing4`: four); responses are checked. Load comes from this
process over real connections in a closed loop; client and server share the cores, so that the client costs every server
the same. Each round measures all servers in rotating order; ratios are taken within rounds. A server is started for its
turn and stopped after it: even an idle gateway checks its model every second, which would slow the others, and what
varies between starts is sampled in each round.

The gateway also runs without isolation and with the model in INT8, and each peer with the gateway's decode workers too.
`--before` adds the gateway of another checkout, so that two commits are compared within rounds.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BUILD, ROOT, create_parser, describe_commit, run_cli, write_result
from benchmarks.load import Connect, LoadPlan, connect_grpc, create_phone_photos, record_expected_responses, run_load
from benchmarks.load.processes import CpuMeter, measure_resident_mb
from benchmarks.peers.environment import FRAMEWORKS, prepare_peer_python
from benchmarks.peers.servers import FRAMEWORK_PEERS, ISOLATED_PEERS, PEERS, serve_peer
from vision.bundle import Bundle, load_bundle
from vision.engine import OnnxEngine
from vision.images import prepare_photo

__all__ = ["create_default_bundle", "create_phone_photos", "measure_ceiling", "measure_resident_mb", "serve_gateway"]

GATEWAY, NO_ISOLATE, INT8, BEFORE = "gateway", "no_isolate", "int8", "before"
_WARMUP_S = 2.0
_RAMP_S = 1.0
"""Time over which connections are opened: those opened at once are mostly accepted by one of several processes."""
_DEADLINE_S = 30.0
_GENERATOR = "the load generator"


@dataclass(frozen=True)
class _Load:
    name: str
    num_callers: int
    num_photos_per_listing: int = 1


_LOADS = (_Load("c8", 8), _Load("c32", 32), _Load("listing4", 8, 4))
_GATEWAY_LOADS = (_Load("c1", 1), *_LOADS)


@dataclass(frozen=True, kw_only=True)
class _Server:
    bundle: Path
    options: tuple[str, ...] = ()
    """Further options of `listing-vision serve`."""
    checkout: Path = ROOT
    is_gateway: bool = True


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Result of one load on one server in one round."""

    photos_per_s: float
    latency_ms: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    cpu_ms_per_photo: dict[str, float]
    rss_mb: float

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latency_ms, percent))

    @property
    def server_cpu_ms_per_photo(self) -> float:
        return sum(ms for name, ms in self.cpu_ms_per_photo.items() if name != _GENERATOR)


def create_default_bundle(checkout: Path = ROOT) -> Path:
    """Train and export a model of the served size with a checkout's code; its accuracy does not matter here."""
    here = BUILD / "serving" if checkout == ROOT else BUILD / f"serving-{describe_commit(checkout)}"
    if not (here / "bundle").exists():
        recipe = here / "recipe.toml"
        here.mkdir(parents=True, exist_ok=True)
        recipe.write_text("input_px = 224\n[[stages]]\nphoto_px = 64\nepochs = 1\n")
        sizes = ("--train-listings", 60, "--val-listings", 60)
        run_cli("data", "synthesize", "--output", here / "data", *sizes, checkout=checkout)
        manifest = here / "data" / "manifest.parquet"
        run_cli("train", manifest, "--recipe", recipe, "--run", here / "run", checkout=checkout)
        run_cli("export", here / "run", "--output", here / "bundle", checkout=checkout)
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
def serve_gateway(
    bundle: Path, *options: str, checkout: Path = ROOT, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, list[int]]]:
    """Serve a bundle; yield the address, and the pids of the gateway and its Triton.

    Args:
        options: further options of `listing-vision serve`.
        checkout: working tree of the code that serves.
        environment: further environment variables.
    """
    log_path = BUILD / "serving" / "serve.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.resolve()), "--port", "0", *options]
        variables = {**os.environ, "PYTHONPATH": str(checkout), **(environment or {})}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=checkout, env=variables)
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


def _create_int8_bundle(bundle: Path, manifest: Path) -> Path:
    folder = BUILD / "serving" / "bundle-int8"
    if not folder.exists():
        # Its accuracy does not matter here.
        run_cli("convert", bundle, manifest, "--precision", "int8", "--output", folder, "--max-top1-loss", 1)
    return folder


def _list_servers(options: argparse.Namespace) -> dict[str, _Server]:
    bundle: Path = options.bundle or create_default_bundle()
    servers = {GATEWAY: _Server(bundle=bundle), NO_ISOLATE: _Server(bundle=bundle, options=("--no-isolate",))}
    if options.bundle is None:  # the manifest that another bundle was trained on is not known
        servers[INT8] = _Server(bundle=_create_int8_bundle(bundle, BUILD / "serving" / "data" / "manifest.parquet"))
    if options.before:
        checkout = options.before.resolve()  # its gateway may not know today's bundles, and has one of its own
        servers[BEFORE] = _Server(bundle=create_default_bundle(checkout), checkout=checkout)
    if options.peers:
        servers |= dict.fromkeys((*PEERS, *ISOLATED_PEERS), _Server(bundle=bundle, is_gateway=False))
    return servers


def _measure(name: str, server: _Server, photos: list[bytes], seconds: float) -> dict[str, _Measured]:
    """Start a server, measure its loads, and stop it."""
    measured = {}
    with (
        serve_gateway(server.bundle, *server.options, checkout=server.checkout)
        if server.is_gateway
        else serve_peer(name, server.bundle)
    ) as (address, pids):
        for load in _GATEWAY_LOADS if name == GATEWAY else _LOADS:
            measured[load.name] = found = asyncio.run(_measure_load(name, address, pids, load, photos, seconds))
            print(
                f"  {name:<19} {load.name:<8} {found.photos_per_s:6.1f} photos/s, p50 {found.percentile_ms(50):4.0f} "
                f"ms, p99 {found.percentile_ms(99):4.0f} ms; processor ms/photo {found.cpu_ms_per_photo}",
                flush=True,
            )
    return measured


async def _measure_load(
    server: str, address: str, pids: Sequence[int], load: _Load, photos: list[bytes], seconds: float
) -> _Measured:
    connect: Connect = (PEERS | ISOLATED_PEERS)[server].connect if server in PEERS | ISOLATED_PEERS else connect_grpc
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
    spent_ms = meter.read_ms_by_name() | {_GENERATOR: report.generator_cpu_s * 1000}
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


def _rounds(photos: list[bytes], *, servers: dict[str, _Server], num_rounds: int, seconds: float) -> list[_Round]:
    bundle = load_bundle(servers[GATEWAY].bundle)
    engines = [OnnxEngine(bundle, num_threads=1) for _ in os.sched_getaffinity(0)]
    for engine in engines:
        engine.infer(bundle.golden.photos_nhwc[:1])
    rounds = []
    for number in range(num_rounds):
        cpu_s = time.process_time()
        top = measure_ceiling(bundle, engines, photos, seconds)
        cpu_ms = (time.process_time() - cpu_s) * 1000 / (top * seconds)
        print(f"round {number + 1}: in process {top:.1f} photos/s; processor ms/photo {cpu_ms:.2f}", flush=True)
        names = list(servers)
        first = number % len(names)
        order = names[first:] + names[:first]
        measured = {name: _measure(name, servers[name], photos, seconds) for name in order}
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
        overheads_ms = [_compute_overhead_ms(done, server) for done in rounds]
        prefix = "" if server == GATEWAY else f"{server}_"
        metrics[f"{prefix}overhead_cpu_ms_per_photo"] = statistics.median(overheads_ms)
    metrics |= _compare_with_others(rounds)
    metrics["rss_mb"] = max(measured.rss_mb for done in rounds for measured in done.servers[GATEWAY].values())
    return metrics


def _compute_overhead_ms(done: _Round, server: str) -> float:
    """Return the CPU time of a photo at 32 callers in all processes but the load generator, less the ceiling's."""
    return done.servers[server]["c32"].server_cpu_ms_per_photo - done.ceiling_cpu_ms_per_photo


def _compare_with_others(rounds: Sequence[_Round]) -> dict[str, float]:
    """Return medians over rounds of the gateway's ratios to the best peer as it ships, and to `--before`."""

    def compute_median(
        load: str, others: Sequence[str], get: Callable[[_Measured], float], best: Callable[[Iterator[float]], float]
    ) -> float:
        return statistics.median(
            get(done.servers[GATEWAY][load]) / best(get(done.servers[other][load]) for other in others)
            for done in rounds
        )

    groups = {"best_peer": tuple(PEERS), "best_framework": FRAMEWORK_PEERS, "before": (BEFORE,)}
    metrics: dict[str, float] = {}
    for group, others in groups.items():
        if others[0] not in rounds[0].servers:
            continue
        for load in (load.name for load in _LOADS):
            rate = compute_median(load, others, lambda measured: measured.photos_per_s, max)
            p99 = compute_median(load, others, lambda measured: measured.percentile_ms(99), min)
            metrics |= {f"photos_per_s_ratio_to_{group}_{load}": rate, f"p99_ratio_to_{group}_{load}": p99}
    if BEFORE in rounds[0].servers:
        metrics["overhead_cpu_ratio_to_before"] = statistics.median(
            _compute_overhead_ms(done, GATEWAY) / _compute_overhead_ms(done, BEFORE) for done in rounds
        )
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
    parser.add_argument("--before", type=Path, help="working tree whose gateway is measured beside this one's")
    options = parser.parse_args()
    servers = _list_servers(options)
    if options.peers:
        prepare_peer_python()
    photos, load_average = create_phone_photos(), os.getloadavg()[0]
    rounds = _rounds(photos, servers=servers, num_rounds=options.rounds, seconds=options.seconds)
    info = load_bundle(servers[GATEWAY].bundle).info
    details = {
        "photo": f"JPEG 1440x1080, {statistics.mean(map(len, photos)) / 1000:.0f} KB on average",
        "model": f"{info.backbone} at {info.preprocessing.input_px} px, {info.precision}",
        "ceiling": "decode and ONNX Runtime on a thread a core in one process",
        "peers": FRAMEWORKS,
        "seconds_each": options.seconds,
        "load_average_before": load_average,
        "before": describe_commit(options.before) if options.before else None,
        "ceiling_photos_per_s": [done.ceiling_photos_per_s for done in rounds],
        "ceiling_cpu_ms_per_photo": [round(done.ceiling_cpu_ms_per_photo, 2) for done in rounds],
        "by_round": _list_by_round(rounds),
    }
    write_result("serving", _metrics(rounds), details)


if __name__ == "__main__":
    main()
