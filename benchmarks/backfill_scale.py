"""Measure a backfill's memory against its length, and the time to the first shard of a long one.

    python -m benchmarks.backfill_scale [--listings 1000 10000 100000] [--rows 10000000]

Jobs of 1,000 to 100,000 listings of one small synthetic photo each, the same photos repeated; memory is the largest sum
over the job's processes. Then a manifest of ten million rows, until its first shard is committed and the job is killed.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from benchmarks.backfill import run_job
from benchmarks.common import BUILD, ROOT, create_parser, write_result
from benchmarks.load.processes import sample_memory
from benchmarks.serving import create_default_bundle
from serving.storage import Store
from training.data.synthetic import PRODUCTS, create_synthetic_photo

FOLDER = BUILD / "backfill_scale"
NUM_FILES = 200
TIMEOUT_S = 300.0


def create_small_photos() -> list[str]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    paths = [FOLDER / f"{number}.jpg" for number in range(NUM_FILES)]
    for number, path in enumerate(paths):
        path.write_bytes(create_synthetic_photo(number % len(PRODUCTS), 1, np.random.default_rng(number)))
    return list(map(str, paths))


def write_shuffled_manifest(path: Path, photos: list[str], *, num_rows: int, per_listing: int) -> Path:
    """Write rows in an order that separates the photos of a listing."""
    numbers = np.arange(num_rows)
    listings = numbers % max(1, num_rows // per_listing)
    ids = pa.array([f"listing-{number:08d}" for number in range(listings.max() + 1)]).take(pa.array(listings))
    names = pa.array(photos).take(pa.array(numbers % len(photos)))
    pyarrow.parquet.write_table(pa.table({"listing_id": ids, "photo": names}), path)
    return path


def measure_first_shard_s(folder: Path, manifest: Path, output: Path) -> tuple[float, float]:
    """Return seconds from the command to the first committed shard, and the largest memory until then in MB."""
    command = [sys.executable, "-m", "listing_vision", "backfill", "run", str(manifest)]
    command += ["--model", str(folder), "--output", str(output), "--overwrite"]
    store, began_s = Store(str(output)), time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    with sample_memory([process.pid], every_s=0.5) as samples:
        try:
            while not store.list_files("_job/ledger"):
                if process.poll() is not None or time.monotonic() - began_s > TIMEOUT_S:
                    raise SystemExit(f"no shard was committed within {TIMEOUT_S:g} s")
                time.sleep(0.1)
            seconds = time.monotonic() - began_s
        finally:
            process.kill()
            process.wait()
    return seconds, max(sum(by_name.values()) for _, by_name in samples)


def main() -> None:
    parser = create_parser(__doc__, rows=10_000_000)
    parser.add_argument("--listings", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    folder, photos = create_default_bundle(), create_small_photos()
    metrics = {}
    for num_listings in options.listings:
        manifest = write_shuffled_manifest(FOLDER / "manifest.parquet", photos, num_rows=num_listings, per_listing=1)
        found = run_job(folder, manifest, FOLDER / "output", num_listings)
        metrics[f"rss_mb_{num_listings}"] = found["rss_mb"]
        metrics[f"photos_per_s_{num_listings}"] = found["photos_per_s"]
        print(f"{num_listings} listings: {found}", flush=True)
    few, many = (metrics[f"rss_mb_{number}"] for number in (options.listings[0], options.listings[-1]))
    metrics["rss_ratio"] = many / few
    manifest = write_shuffled_manifest(FOLDER / "long.parquet", photos, num_rows=options.rows, per_listing=3)
    metrics["first_shard_s"], metrics["first_shard_rss_mb"] = measure_first_shard_s(folder, manifest, FOLDER / "long")
    write_result("backfill_scale", metrics, {"rows": options.rows, "listings": options.listings})


if __name__ == "__main__":
    main()
