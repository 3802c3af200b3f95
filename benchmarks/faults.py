"""Inject faults under load (kills, freezes, floods, a full disk, hostile photos); measure recovery and wrong responses.

    python -m benchmarks.faults [--bundle FOLDER] [--only FAULT …] [--seconds 25]

Each run starts the gateway (two processes) with its Triton, sends listings in an open loop at half of the peak, and
injects its fault after five seconds. Recovery is the time from the fault until all calls sent later succeed. A wrong
response differs from an idle server's; a hung call has not ended a second after its deadline. `full_disk` needs root:
it mounts a small disk.
"""

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.common import BUILD, create_parser, write_result
from benchmarks.fairness import NUM_FLOOD_CALLS, START_S, flood_until, write_tokens
from benchmarks.load import (
    CALL_RESULTS,
    Connect,
    ExpectedResponse,
    LoadPlan,
    LoadReport,
    connect_grpc,
    create_phone_photos,
    record_expected_responses,
    run_load,
)
from benchmarks.load.processes import list_process_tree
from benchmarks.load.stalled_upload import StalledUpload
from benchmarks.serving import create_default_bundle, serve_gateway
from tests.support.hostile_photos import hostile_photos
from vision.runtime.cpus import count_usable_cores

SHARE_OF_PEAK = 0.5
DEADLINE_S = 5.0
INJECT_AFTER_S = 5.0
FREEZE_S = 10.0
NUM_HOSTILE = 1000
FLOOD_S = 10.0
NUM_WATCHES = 1100
NUM_STALLED = 40
STALLED_BYTES = 60 << 20
TOKENS = BUILD / "faults" / "tokens"
DISK = BUILD / "faults" / "disk"
DISK_SIZE = "2m"
NO_PROXY_LISTENS = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Tree:
    """The served processes."""

    supervisor: int
    port: int
    """The gRPC port."""

    def find_pids(self, what: bytes) -> list[int]:
        """Return the pids whose command line contains the words."""
        found = []
        for pid in list_process_tree([self.supervisor]):
            with contextlib.suppress(OSError):
                if what in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return sorted(found)


async def kill_triton(tree: Tree) -> None:
    os.kill(tree.find_pids(b"bin/tritonserver")[0], signal.SIGKILL)


async def kill_stub(tree: Tree) -> None:
    os.kill(tree.find_pids(b"triton_python_backend_stub")[0], signal.SIGKILL)


async def kill_worker(tree: Tree) -> None:
    os.kill(find_busiest_worker(tree), signal.SIGKILL)


async def freeze_worker(tree: Tree) -> None:
    """Freeze the busiest gateway process for ever."""
    os.kill(find_busiest_worker(tree), signal.SIGSTOP)


async def freeze_triton(tree: Tree) -> None:
    frozen = tree.find_pids(b"bin/tritonserver")[0]
    os.kill(frozen, signal.SIGSTOP)
    await asyncio.sleep(FREEZE_S)
    with contextlib.suppress(ProcessLookupError):  # it may have been replaced
        os.kill(frozen, signal.SIGCONT)


async def rolling_restart(tree: Tree) -> None:
    os.kill(tree.supervisor, signal.SIGHUP)


async def flood_watches(tree: Tree) -> None:
    """Open more health watches than a process may have open calls, over few connections."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{tree.port}", options=options) for _ in range(4)]
    stubs = [health_pb2_grpc.HealthStub(channel) for channel in channels]
    watches = [stubs[i % 4].Watch(health_pb2.HealthCheckRequest()) for i in range(NUM_WATCHES)]
    with contextlib.suppress(grpc.aio.AioRpcError):
        await watches[0].read()
    await asyncio.sleep(FLOOD_S)
    for channel in channels:
        await channel.close()


async def stall_uploads(tree: Tree) -> None:
    """Hold uploads open that stop before their last byte."""
    uploads = [StalledUpload(tree.port, STALLED_BYTES) for _ in range(NUM_STALLED)]
    for upload in uploads:
        upload.start()
    await asyncio.sleep(FLOOD_S)
    for upload in uploads:
        upload.close()


async def occupy_cores(tree: Tree) -> None:
    """Run two busy processes a core beside the service."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(2 * count_usable_cores())]
    await asyncio.sleep(FLOOD_S)
    for process in busy:
        process.kill()
        process.wait()


async def flood_with_large_photos(tree: Tree) -> None:
    """Let another caller keep 20 calls of 20 photos of 50 megapixels in flight."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[dict[str, int], float]] = context.Queue()
    flood = context.Process(target=flood_for_a_while, args=(f"127.0.0.1:{tree.port}", results))
    flood.start()
    calls, _ = await asyncio.to_thread(results.get, timeout=120)
    flood.join()
    num_calls = sum(calls.values())
    if num_calls < NUM_FLOOD_CALLS:
        raise SystemExit(f"the other caller made {num_calls} calls only: the machine is too busy for this drill")


def flood_for_a_while(address: str, results: "multiprocessing.Queue[tuple[dict[str, int], float]]") -> None:
    flood_until(address, time.monotonic() + START_S + FLOOD_S, results)


@contextlib.contextmanager
def mount_small_disk() -> Iterator[None]:
    DISK.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", DISK], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", DISK], check=True)


async def fill_disk(tree: Tree) -> None:
    """Leave no byte on the disk that outcomes and suggestions are recorded on."""
    filler = DISK / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    await asyncio.sleep(FLOOD_S)
    filler.unlink()


async def inject_nothing(tree: Tree) -> None:
    """Do nothing: the load itself or the environment is the fault."""


def find_busiest_worker(tree: Tree) -> int:
    """Return the gateway process with most callers, since processes on one port do not share them evenly."""
    return max(tree.find_pids(b"serving.supervisor.gateway_worker"), key=_count_sockets)


def _count_sockets(pid: int) -> int:
    return sum(link.readlink().name.startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())


@dataclass(frozen=True, kw_only=True)
class Fault:
    inject: Callable[[Tree], Awaitable[None]]
    short_deadlines: bool = False
    hostile: bool = False
    extra_s: float = 0.0
    """Further seconds of load, for a fault that is detected late."""
    options: tuple[str, ...] = ()
    """Further options of `listing-vision serve`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables of its environment."""
    token: str | None = None
    """Token of the load's calls."""
    on_small_disk: bool = False


FAULTS = {
    "kill_triton": Fault(inject=kill_triton),
    "kill_stub": Fault(inject=kill_stub),
    "kill_worker": Fault(inject=kill_worker),
    "freeze_triton": Fault(inject=freeze_triton),
    "freeze_worker": Fault(inject=freeze_worker, extra_s=15),
    "rolling_restart": Fault(inject=rolling_restart),
    "watch_flood": Fault(inject=flood_watches),
    "stalled_uploads": Fault(inject=stall_uploads),
    "busy_machine": Fault(inject=occupy_cores),
    "unfair_caller": Fault(
        inject=flood_with_large_photos, options=("--tokens", str(TOKENS)), token="victim", extra_s=10
    ),
    "full_disk": Fault(inject=fill_disk, options=("--outcomes", str(DISK)), on_small_disk=True),
    "proxy": Fault(
        inject=inject_nothing,
        environment={
            **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), NO_PROXY_LISTENS),
            "no_proxy": "",
            "NO_PROXY": "",
        },
    ),
    "deadline_storm": Fault(inject=inject_nothing, short_deadlines=True),
    "hostile_photos": Fault(inject=inject_nothing, hostile=True),
}


async def run_fault(
    fault: Fault, tree: Tree, address: str, photos: list[bytes], hostile: list[bytes], seconds: float
) -> tuple[LoadReport, float]:
    """Return the report, and the time of the fault in seconds since the load began."""
    connect: Connect = functools.partial(connect_grpc, token=fault.token)
    expected: list[ExpectedResponse] = await record_expected_responses(
        address, photos, hostile=hostile, connect=connect
    )
    clean = expected[: len(photos)]
    peak_plan = LoadPlan(seconds=3, num_callers=16, deadline_s=30)
    peak = await run_load(address, peak_plan, photos, expected=clean, connect=connect)
    rate_per_s = SHARE_OF_PEAK * peak.photos_per_s
    if fault.hostile:
        seconds = 1.1 * NUM_HOSTILE / rate_per_s
    plan = LoadPlan(
        seconds=seconds,
        rate_per_s=rate_per_s,
        deadline_s=DEADLINE_S,
        warmup_s=0,
        ramp_s=1,
        hostile_share=1.0 if fault.hostile else 0.0,
        short_deadline_share=0.9 if fault.short_deadlines else 0.0,
        short_deadline_s=(0.001, 0.020),
        max_in_flight=4096,
    )
    started_s = time.monotonic()
    load = asyncio.create_task(run_load(address, plan, photos, hostile=hostile, expected=expected, connect=connect))
    await asyncio.sleep(min(INJECT_AFTER_S, seconds / 2))
    injected_s = time.monotonic() - started_s
    await fault.inject(tree)
    return await load, injected_s


def create_hostile_files() -> list[bytes]:
    """Return the tests' hostile photos that are refused, without those above 1 MiB, which load the generator."""
    return [photo.data for photo in hostile_photos() if photo.expected and len(photo.data) < 1 << 20]


def compute_recovery_s(report: LoadReport, injected_s: float) -> float:
    """Return the time from the fault until the last call that did not succeed was sent; 0 where all succeeded.

    Calls with a deliberately short deadline do not count.
    """
    lost = report.due_s[
        (report.results != CALL_RESULTS.index("ok"))
        & ~report.has_short_deadline
        & (report.due_s >= injected_s - DEADLINE_S)
    ]
    return max(0.0, float(lost.max(initial=injected_s) - injected_s))


def main() -> None:
    parser = create_parser(__doc__, bundle=None, seconds=25.0)
    parser.add_argument("--only", choices=tuple(FAULTS), nargs="+", default=list(FAULTS))
    options = parser.parse_args()
    folder: Path = options.bundle or create_default_bundle()
    photos = create_phone_photos()
    write_tokens(TOKENS)
    details: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    for name in options.only:
        fault = FAULTS[name]
        hostile = create_hostile_files() if fault.hostile else []
        with (
            mount_small_disk() if fault.on_small_disk else contextlib.nullcontext(),
            serve_gateway(folder, "--workers", "2", *fault.options, environment=fault.environment) as (address, pids),
        ):
            tree = Tree(pids[0], int(address.rpartition(":")[2]))
            report, injected_s = asyncio.run(
                run_fault(fault, tree, address, photos, hostile, options.seconds + fault.extra_s)
            )
        took_s = compute_recovery_s(report, injected_s)
        counts = {ending: report.count(ending) for ending in CALL_RESULTS if report.count(ending)}
        print(f"{name:<16} recovered after {took_s:5.2f} s; {counts}; {dict(report.status_counts)}", flush=True)
        details[name] = {"recovery_s": took_s, "counts": counts, "statuses": dict(report.status_counts)}
        metrics[f"{name}_recovery_s"] = took_s
    metrics["wrong_or_hung_calls"] = sum(d["counts"].get(e, 0) for d in details.values() for e in ("wrong", "hung"))
    metrics["drills"] = len(details)
    write_result("faults", metrics, {"deadline_s": DEADLINE_S, "drills": details})


if __name__ == "__main__":
    main()
