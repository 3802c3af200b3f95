"""The gateway with its Triton against the same decode and model called in one process, side by side in one run.

    python -m benchmarks.serving [--bundle FOLDER] [--rounds 3] [--seconds 10]

Each call is one listing of one photo, 1440x1080 JPEG. Load comes from this process over real channels, closed loop;
client, gateway and Triton share the machine's cores, so the client's work counts against the gateway.
"""

import argparse
import asyncio
import io
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import BUILD, ROOT, cli, write_result
from serving.client import AsyncListingVisionClient
from training.drawing import draw_photo
from vision.bundle import Bundle, load_bundle
from vision.engine import OnnxEngine
from vision.images import prepare_photo

CONCURRENCIES = (1, 8, 32)
NUM_PHOTOS = 64


def default_bundle() -> Path:
    """A model of the served size; what it has learned does not change its speed."""
    here = BUILD / "serving"
    if not (here / "bundle").exists():
        recipe = here / "recipe.toml"
        here.mkdir(parents=True, exist_ok=True)
        recipe.write_text("input_px = 224\n[[stages]]\nphoto_px = 64\nepochs = 1\n")
        cli("data", "draw", "--output", here / "data", "--train-listings", 60, "--val-listings", 60)
        cli("train", here / "data" / "manifest.parquet", "--recipe", recipe, "--run", here / "run")
        cli("export", here / "run", "--output", here / "bundle")
    return here / "bundle"


def phone_photos() -> list[bytes]:
    """Drawn photos at the size that phones upload after the app has scaled them."""
    photos = []
    for number in range(NUM_PHOTOS):
        rng = np.random.default_rng(number)
        drawn = Image.open(io.BytesIO(draw_photo(number % 10, 1, rng))).convert("RGB").resize((1440, 1080))
        grain = rng.normal(0, 6, (1080, 1440, 1))
        out = io.BytesIO()
        Image.fromarray((np.asarray(drawn) + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=80)
        photos.append(out.getvalue())
    return photos


def ceiling(bundle: Bundle, engines: list[OnnxEngine], photos: list[bytes], seconds: float) -> float:
    """Photos/s of decode and model on a thread a core, with nothing between them."""

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


async def load(address: str, photos: list[bytes], *, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Photos/s and the latency in ms of each call; an answer without a path is an error."""
    latencies: list[float] = []
    deadline = time.monotonic() + seconds

    async def caller(client: AsyncListingVisionClient, number: int) -> None:
        while time.monotonic() < deadline:
            started_s = time.monotonic()
            response = await client.classify([photos[number % len(photos)]], timeout_s=30)
            latencies.append((time.monotonic() - started_s) * 1000)
            assert response.category_path
            number += concurrency

    async with AsyncListingVisionClient(address) as client:
        await client.classify([photos[0]])
        started_s = time.monotonic()
        deadline = started_s + seconds
        await asyncio.gather(*(caller(client, number) for number in range(concurrency)))
        return len(latencies) / (time.monotonic() - started_s), latencies


@contextmanager
def gateway(bundle: Path) -> Iterator[tuple[str, list[int]]]:
    """Address of a served bundle, and the pids of the gateway and its Triton."""
    log_path = BUILD / "serving" / "serve.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "listing_vision", "serve", str(bundle), "--port", "0"]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        while not (found := re.search(r"listening on (\S+)", log_path.read_text())):
            if process.poll() is not None:
                raise SystemExit(log_path.read_text())
            time.sleep(0.1)
        triton = re.search(r"Triton \(pid (\d+)\)", log_path.read_text())
        if not triton:
            raise SystemExit("this machine has no Triton to measure; `listing-vision triton install`")
        yield found.group(1), [process.pid, int(triton.group(1))]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def resident_mb(pids: list[int]) -> float:
    """Resident memory of the processes and their children."""
    total = 0
    for pid in pids:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for member in (pid, *map(int, children)):
            status = Path(f"/proc/{member}/status").read_text()
            total += int(re.search(r"VmRSS:\s+(\d+)", status).group(1))  # type: ignore[union-attr]  # each status has it
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    folder: Path = options.bundle or default_bundle()
    bundle, photos = load_bundle(folder), phone_photos()
    engines = [OnnxEngine(bundle, num_threads=1) for _ in os.sched_getaffinity(0)]
    for engine in engines:
        engine.infer(bundle.golden.photos_nhwc[:1])
    ceilings: list[float] = []
    rates: dict[int, list[float]] = {c: [] for c in CONCURRENCIES}
    latencies: dict[int, list[float]] = {c: [] for c in CONCURRENCIES}
    with gateway(folder) as (address, pids):
        for round_number in range(options.rounds):
            ceilings.append(ceiling(bundle, engines, photos, options.seconds))
            print(f"round {round_number + 1}: in process {ceilings[-1]:.1f} photos/s", flush=True)
            for c in CONCURRENCIES:
                rate, milliseconds = asyncio.run(load(address, photos, concurrency=c, seconds=options.seconds))
                rates[c].append(rate)
                latencies[c].extend(milliseconds)
                print(
                    f"  gateway, {c:>2} callers: {rate:5.1f} photos/s, p50 {np.median(milliseconds):.0f} ms", flush=True
                )
        rss_mb = resident_mb(pids)
    metrics = {"ceiling_photos_per_s": statistics.median(ceilings)}
    for c in CONCURRENCIES:
        metrics[f"photos_per_s_c{c}"] = statistics.median(rates[c])
        metrics[f"ratio_to_ceiling_c{c}"] = statistics.median(
            rate / top for rate, top in zip(rates[c], ceilings, strict=True)
        )
        metrics[f"p50_ms_c{c}"], metrics[f"p99_ms_c{c}"] = (float(q) for q in np.percentile(latencies[c], (50, 99)))
    metrics["rss_mb"] = rss_mb
    details = {
        "photo": f"JPEG 1440x1080, {statistics.mean(map(len, photos)) / 1000:.0f} KB on average, one a listing",
        "model": f"{bundle.info.backbone} at {bundle.info.preprocessing.input_px} px, {bundle.info.precision}",
        "ceiling": "decode and ONNX Runtime on a thread a core in one process",
        "rounds": options.rounds,
        "seconds_each": options.seconds,
        "ceilings": ceilings,
        "rates": rates,
    }
    write_result("serving", metrics, details)


if __name__ == "__main__":
    main()
