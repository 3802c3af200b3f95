"""Inject faults under load (kills, freezes, floods, hostile photos); measure recovery and wrong responses.

    python -m benchmarks.faults [--bundle FOLDER] [--only FAULT …] [--seconds 25]

Each run starts the gateway (two processes) with its Triton, sends listings in an open loop at half of the peak, and
injects its fault after five seconds. Recovery is the time from the fault until all calls sent later succeed. A wrong
response differs from an idle server's; a hung call has not ended a second after its deadline.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.common import create_parser, write_result
from benchmarks.load import (
    CALL_RESULTS,
    ExpectedResponse,
    LoadPlan,
    LoadReport,
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


async def inject_nothing(tree: Tree) -> None:
    """Do nothing: the load itself is the fault."""


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
    "deadline_storm": Fault(inject=inject_nothing, short_deadlines=True),
    "hostile_photos": Fault(inject=inject_nothing, hostile=True),
}


async def run_fault(
    fault: Fault, tree: Tree, address: str, photos: list[bytes], hostile: list[bytes], seconds: float
) -> tuple[LoadReport, float]:
    """Return the report, and the time of the fault in seconds since the load began."""
    expected: list[ExpectedResponse] = await record_expected_responses(address, photos, hostile=hostile)
    clean = expected[: len(photos)]
    peak = await run_load(address, LoadPlan(seconds=3, num_callers=16, deadline_s=30), photos, expected=clean)
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
    load = asyncio.create_task(run_load(address, plan, photos, hostile=hostile, expected=expected))
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
    details: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    for name in options.only:
        fault = FAULTS[name]
        hostile = create_hostile_files() if fault.hostile else []
        with serve_gateway(folder, "--workers", "2") as (address, pids):
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
