"""Measure the CPU time of handing photos over from files to the model, with a decoder and a model that do nothing.

    python -m benchmarks.handover [--photos 8000] [--decoders 16] [--rounds 5] [--before CHECKOUT]

JPEGs of 300 KB as files, and batches of 128 as on a GPU. The parent is the process with the model; total is the parent
and its feeders. What the decode workers take is theirs, and not counted. CPU time is robust on a busy machine; the two
checkouts are measured in turns.

`--before` is a checkout of 1659a38, the last commit without feeders: its process reads the photos and hands each to a
decode worker.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.backfill import create_photos
from benchmarks.common import BUILD, ROOT, create_parser, describe_commit, write_result
from benchmarks.feeding import cut_shards, open_pipeline
from vision.decoding.time_limits import read_cpu_s
from vision.engine import Logits
from vision.images import Preprocessing

BATCH_SIZE = 128
NUM_INFER_THREADS = 2
PHOTOS_PER_SHARD = 400
PREPROCESSING = Preprocessing(input_px=224)
PYTHON = (sys.executable, str(ROOT / "benchmarks" / "null_python.py"))

_BEFORE = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from serving.backfill.pipeline import Pipeline, WaitTimes
from serving.backfill.plan import ShardPhotos
from vision.decoding.fork_client import MAX_MEMORY_BYTES, Decoder, ForkServer
from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import TimeLimits
from vision.engine import Logits
from vision.feeders.photo_reader import PhotoReader
from vision.images import PhotoLimits, Preprocessing

photos, num_decoders, python, input_px, batch, threads, per_shard = json.loads(sys.stdin.read())
settings = DecodeSettings(
    preprocessing=Preprocessing(input_px=input_px), limits=PhotoLimits(), max_memory_bytes=MAX_MEMORY_BYTES
)
decoders = [
    Decoder(ForkServer(settings, python, path=Path.cwd()), settings, time_limits=TimeLimits(wall_s=60.0))
    for _ in range(num_decoders)
]

def run(photos):
    stop = threading.Event()
    pipeline = Pipeline(
        PhotoReader("", stop=stop), decoders,
        lambda pixels: Logits(*(np.zeros((len(pixels), 1), np.float32) for _ in Logits._fields)),
        num_infer_threads=threads, max_batch_size=batch, stop=stop, wait_times=WaitTimes(),
    )
    shards = [photos[at : at + per_shard] for at in range(0, len(photos), per_shard)]
    for done in pipeline.run(
        ShardPhotos(number=n, listing_ids=["x"], photos=some, groups=np.zeros(len(some), np.int64))
        for n, some in enumerate(shards)
    ):
        assert not done.failures, done.failures

run(photos[: len(photos) // 8])
began_s = time.process_time()
run(photos)
parent_s = time.process_time() - began_s
print(json.dumps([parent_s, parent_s]))
"""
"""Prints the CPU seconds of the parent and in total."""


def measure_feeders(photos: list[str], num_decoders: int) -> tuple[float, float]:
    """Return the CPU seconds of the parent and in total."""
    with open_pipeline(
        PREPROCESSING,
        _infer_nothing,
        num_decoders=num_decoders,
        batch_size=BATCH_SIZE,
        num_infer_threads=NUM_INFER_THREADS,
        python=PYTHON,
    ) as (pipeline, feeders):

        def run(some: list[str]) -> None:
            for done in pipeline.run(cut_shards(some, PHOTOS_PER_SHARD), base_url=""):
                assert not done.failures, done.failures

        def read_cpu_times_s() -> npt.NDArray[np.float64]:
            parent_s = read_cpu_s(os.getpid())
            return np.array([parent_s, parent_s + sum(map(read_cpu_s, feeders.pids))])

        run(photos[: len(photos) // 8])
        before_s = read_cpu_times_s()
        run(photos)
        parent_s, total_s = (read_cpu_times_s() - before_s).tolist()
    return parent_s, total_s


def measure_before(checkout: Path, photos: list[str], num_decoders: int) -> tuple[float, float]:
    """Return the same of a checkout without feeders."""
    given = [photos, num_decoders, PYTHON, PREPROCESSING.input_px, BATCH_SIZE, NUM_INFER_THREADS, PHOTOS_PER_SHARD]
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    parent_s, total_s = json.loads(done.stdout)
    return parent_s, total_s


def _infer_nothing(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
    return Logits(*(np.zeros((len(photos_nhwc), 1), np.float32) for _ in Logits._fields))


def main() -> None:
    options = create_parser(__doc__, photos=8000, decoders=16, rounds=5, before=None).parse_args()
    files = [str(path) for path in create_photos(BUILD / "backfill" / "photos")]
    photos = list(itertools.islice(itertools.cycle(files), options.photos))
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        found: dict[str, float] = {}
        found["parent"], found["total"] = measure_feeders(photos, options.decoders)
        if options.before:
            _, found["before"] = measure_before(options.before.resolve(), photos, options.decoders)
        rounds.append({name: 1000 * seconds / len(photos) for name, seconds in found.items()})
        print(f"round {number + 1}, ms a photo: {rounds[-1]}", flush=True)
    metrics = {f"{name}_ms_per_photo": statistics.median(one[name] for one in rounds) for name in rounds[0]}
    if options.before:
        metrics["total_ratio_to_before"] = statistics.median(one["total"] / one["before"] for one in rounds)
    details: dict[str, Any] = {
        "photos": options.photos,
        "decoders": options.decoders,
        "rounds_ms_per_photo": rounds,
        "before": describe_commit(options.before) if options.before else None,
    }
    write_result("handover", metrics, details)


if __name__ == "__main__":
    main()
