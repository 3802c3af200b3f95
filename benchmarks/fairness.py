"""Measure what one caller gets while another one floods the service with large photos.

    python -m benchmarks.fairness [--bundle FOLDER] [--seconds 60]

The victim classifies one photo of a phone at a time, first alone, then beside a caller with another token that keeps 20
calls of 20 photos of 50 megapixels in flight, and tries a refused one again twice a second. That caller would run on
another machine: it writes its 60 MiB to its connections without a library that copies them for each attempt. What it
takes of these cores all the same stands beside.
"""

import asyncio
import hashlib
import io
import multiprocessing
import re
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Queue
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from benchmarks.common import BUILD, create_parser, write_result
from benchmarks.load import create_phone_photos
from benchmarks.load.connections import CLASSIFY_METHOD
from benchmarks.load.raw_connection import RawConnection, frame_message
from benchmarks.serving import create_default_bundle, serve_gateway
from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb
from vision.runtime.cpus import count_usable_cores

NUM_FLOOD_CALLS = 20
FLOOD_PAUSE_S = 0.5
PHOTOS_PER_CALL = 20
LARGE_SIDES_PX = (8000, 6250)
DEADLINE_S = 5.0
VICTIM_PAUSE_S = 0.1
START_S = 4.0
"""Until the flooding process has made its photos and calls."""
_CALLERS = ("victim", "flood")


def create_large_photo() -> bytes:
    """Return a JPEG of 50 megapixels."""
    small = np.random.default_rng(0).integers(0, 256, (125, 160, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(LARGE_SIDES_PX, Image.Resampling.BILINEAR).save(out, "JPEG", quality=75)
    return out.getvalue()


def write_tokens(path: Path) -> None:
    lines = [f"{name} {hashlib.sha256(name.encode()).hexdigest()}" for name in _CALLERS]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


class Caller:
    """Calls with one token over a connection of its own, and counts how its calls end."""

    def __init__(self, address: str, name: str) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.max_send_message_length", -1),
        ]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        # Without serialisers bytes go out as they are: the generator must not be what is slow.
        self._classify: Any = self._channel.unary_unary(CLASSIFY_METHOD)
        self._metadata = [("authorization", f"Bearer {name}")]
        self.results: Counter[str] = Counter()
        self.latencies_ms: list[float] = []

    async def call(self, request: bytes) -> None:
        began_s = time.perf_counter()
        try:
            await self._classify(request, timeout=DEADLINE_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self.results[read_error_details(error).reason or error.code().name] += 1
            return
        self.results["ok"] += 1
        self.latencies_ms.append(1000 * (time.perf_counter() - began_s))

    async def call_until(self, until_s: float, request: bytes, *, pause_s: float) -> None:
        while time.monotonic() < until_s:
            await self.call(request)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        await self._channel.close()


async def count_breaker_openings(status_url: str, until_s: float) -> int:
    """Poll the gauge of open circuit breakers; return how often it rose."""
    num_openings, was_open = 0, False
    while time.monotonic() < until_s:
        text = await asyncio.to_thread(_read_metrics, status_url)
        is_open = bool(re.search(r"^listing_vision_gateway_breaker_open(\{[^}]*\})? [1-9]", text, re.MULTILINE))
        num_openings += is_open and not was_open
        was_open = is_open
        await asyncio.sleep(0.25)
    return num_openings


def _read_metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        return str(response.read().decode())


def flood_until(address: str, until_s: float, results: "Queue[tuple[dict[str, int], float]]") -> None:
    """Flood from a process of its own, so that the victim's calls are not delayed by their generator.

    Its results are how its calls ended, and the processor time that it took, in seconds.
    """
    photos = [pb.Photo(content=create_large_photo())] * PHOTOS_PER_CALL
    message = frame_message(pb.ClassifyListingRequest(photos=photos).SerializeToString())
    port = int(address.rpartition(":")[2])
    counts: Counter[str] = Counter()

    def call_until() -> None:
        connection = RawConnection(port, token="flood", timeout_s=DEADLINE_S)
        while time.monotonic() < until_s:
            counts["ok" if connection.call(message) else "refused"] += 1
            time.sleep(FLOOD_PAUSE_S)
        connection.close()

    with ThreadPoolExecutor(NUM_FLOOD_CALLS) as threads:
        calls = [threads.submit(call_until) for _ in range(NUM_FLOOD_CALLS)]
    for one in calls:
        one.result()
    results.put((dict(counts), time.process_time()))


async def measure(address: str, status_url: str, seconds: float) -> dict[str, Any]:
    request = pb.ClassifyListingRequest(photos=[pb.Photo(content=create_phone_photos([0])[0])]).SerializeToString()
    quiet, victim = Caller(address, "victim"), Caller(address, "victim")
    await quiet.call_until(time.monotonic() + seconds, request, pause_s=VICTIM_PAUSE_S)
    context = multiprocessing.get_context("spawn")
    results: Queue[tuple[dict[str, int], float]] = context.Queue()
    until_s = time.monotonic() + seconds + START_S
    flood = context.Process(target=flood_until, args=(address, until_s, results))
    flood.start()
    await asyncio.sleep(START_S)
    _, num_openings = await asyncio.gather(
        victim.call_until(until_s, request, pause_s=VICTIM_PAUSE_S), count_breaker_openings(status_url, until_s)
    )
    flooded, generator_cpu_s = await asyncio.to_thread(results.get, timeout=120)
    flood.join()
    for caller in (quiet, victim):
        await caller.close()
    return {
        "quiet": dict(quiet.results),
        "victim": dict(victim.results),
        "flood": flooded,
        "quiet_p50_ms": float(np.percentile(quiet.latencies_ms, 50)),
        "quiet_p99_ms": float(np.percentile(quiet.latencies_ms, 99)),
        "victim_p50_ms": float(np.percentile(victim.latencies_ms, 50)),
        "victim_p99_ms": float(np.percentile(victim.latencies_ms, 99)),
        "breaker_openings": num_openings,
        "generator_cpu_share": generator_cpu_s / ((seconds + START_S) * count_usable_cores()),
    }


def main() -> None:
    options = create_parser(__doc__, bundle=None, seconds=60.0, status_port=8099).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    tokens = BUILD / "fairness" / "tokens"
    write_tokens(tokens)
    port = int(options.status_port)
    with serve_gateway(folder, "--tokens", str(tokens), "--status-port", str(port)) as (address, _):
        found = asyncio.run(measure(address, f"http://127.0.0.1:{port}", options.seconds))
    metrics = {
        "victim_answered_share": found["victim"].get("ok", 0) / sum(found["victim"].values()),
        "victim_p99_ratio": found["victim_p99_ms"] / found["quiet_p99_ms"],
        "breaker_openings": found["breaker_openings"],
    }
    write_result("fairness", metrics, found)


if __name__ == "__main__":
    main()
