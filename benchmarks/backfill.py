"""Compare a backfill of 20,000 photos with the same model called in one process, and with a plain Ray Data script.

    python -m benchmarks.backfill [--bundle FOLDER] [--photos 20000] [--rounds 2] [--no-ray]

1440x1080 JPEGs of 300 KB as files, two per listing. In process: one thread per core reads, decodes and runs the model,
and drops the logits. The job's photos/s are those of the whole command, with start, plan, model and commit; the start
of Ray is not counted in the script's. Ceilings are measured before and after each job, ratios taken within rounds.
"""

import argparse
import csv
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import BUILD, ROOT, create_parser, write_result
from benchmarks.load import create_phone_photos
from benchmarks.load.processes import sample_memory
from benchmarks.serving import create_default_bundle
from vision.bundle import load_bundle
from vision.engine import OnnxEngine
from vision.images import prepare_photo

FOLDER = BUILD / "backfill"
NUM_FILES = 256
PHOTOS_PER_LISTING = 2


def create_photos(folder: Path) -> list[Path]:
    """Return the photo files; drawn once."""
    paths = [folder / f"{number}.jpg" for number in range(NUM_FILES)]
    if not paths[-1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = create_phone_photos()
        for path, photo in zip(paths, itertools.cycle(drawn), strict=False):
            path.write_bytes(photo)
    return paths


def write_manifest(path: Path, photos: list[Path], *, per_listing: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["listing_id", "photo"])
        writer.writerows((f"listing-{number // per_listing}", photo) for number, photo in enumerate(photos))


def measure_ceiling(folder: Path, photos: list[Path]) -> float:
    """Return photos/s of read, decode and model on one thread per core."""
    bundle = load_bundle(folder)
    engines = [OnnxEngine(bundle, num_threads=1) for _ in os.sched_getaffinity(0)]
    for engine in engines:
        engine.infer(bundle.golden.photos_nhwc[:1])

    def work(number: int) -> None:
        for path in photos[number :: len(engines)]:
            engines[number].infer(prepare_photo(path.read_bytes(), bundle.info.preprocessing)[None])

    began_s = time.monotonic()
    with ThreadPoolExecutor(len(engines)) as pool:
        list(pool.map(work, range(len(engines))))
    return len(photos) / (time.monotonic() - began_s)


def run_job(folder: Path, manifest: Path, output: Path, num_photos: int, *options: str) -> dict[str, Any]:
    """Run the command; return its rates and memory."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "listing_vision", "backfill", "run", str(manifest)]
    command += ["--model", str(folder), "--output", str(output), *options]
    began_s = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with sample_memory([process.pid], every_s=1) as samples:
        said, failed = process.communicate()
    seconds = time.monotonic() - began_s
    if process.returncode:
        raise SystemExit(said + failed)
    found = re.search(r"(\S+) photos/s.*; (waiting for .*)", said)
    assert found, said
    return {
        "photos_per_s": num_photos / seconds,
        "photos_per_s_without_start": float(found[1]),
        "waiting": found[2],
        "rss_mb": max(sum(by_name.values()) for _, by_name in samples),
    }


def run_ray_data(folder: Path, photos: list[Path], output: Path) -> float:
    shutil.rmtree(output, ignore_errors=True)
    listed = FOLDER / "photos.txt"
    listed.write_text("\n".join(map(str, photos)))
    command = [sys.executable, "-m", "benchmarks.peers.ray_data_script", str(folder), str(listed), str(output)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1])["photos_per_s"])


def main() -> None:
    parser = create_parser(__doc__, bundle=None, photos=20_000, rounds=2)
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    folder: Path = options.bundle or create_default_bundle()
    files = create_photos(FOLDER / "photos")
    photos = list(itertools.islice(itertools.cycle(files), options.photos))
    manifest = FOLDER / "manifest.csv"
    write_manifest(manifest, photos, per_listing=PHOTOS_PER_LISTING)
    some = photos[: len(photos) // 4]
    rounds = []
    for number in range(options.rounds):
        before = measure_ceiling(folder, some)
        ours = run_job(folder, manifest, FOLDER / "output", len(photos))
        top = statistics.mean([before, measure_ceiling(folder, some)])
        print(f"  in process {top:.1f} photos/s; the job: {ours}", flush=True)
        plain = run_ray_data(folder, photos, FOLDER / "ray") if options.ray else None
        rounds.append({"ceiling_photos_per_s": top, "ray_data_photos_per_s": plain, **ours})
        print(f"round {number + 1}: {rounds[-1]}", flush=True)
    metrics = {
        "ceiling_photos_per_s": statistics.median(r["ceiling_photos_per_s"] for r in rounds),
        "photos_per_s": statistics.median(r["photos_per_s"] for r in rounds),
        "ratio_to_ceiling": statistics.median(r["photos_per_s"] / r["ceiling_photos_per_s"] for r in rounds),
        "rss_mb": max(r["rss_mb"] for r in rounds),
    }
    if options.ray:
        metrics["ray_data_photos_per_s"] = statistics.median(r["ray_data_photos_per_s"] for r in rounds)
        metrics["ratio_to_ray_data"] = statistics.median(r["photos_per_s"] / r["ray_data_photos_per_s"] for r in rounds)
    write_result("backfill", metrics, {"photos": len(photos), "rounds": rounds})


if __name__ == "__main__":
    main()
