"""Kill a backfill job, its feeders, decoders and Ray workers at random moments, twenty times; then verify its output.

    python -m benchmarks.backfill_kills [--kills 20] [--listings 12000]

SIGKILL goes in turn to the job's process, to one of its feeders, to one of its decode workers, to one of its Ray
workers, and to the process of the same job on Ray. After each kill of the job the same command is started again, on the
engine of that turn. Photos come over HTTP from a server that counts requests: those beyond one per photo are repeated
work, read-ahead included.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from benchmarks.backfill import write_manifest
from benchmarks.common import BUILD, ROOT, create_parser, write_result
from benchmarks.load.processes import list_process_tree
from benchmarks.serving import create_default_bundle
from serving.backfill import inspection
from serving.storage import Store
from training.data.synthetic import PRODUCTS, create_synthetic_photo

FOLDER = BUILD / "backfill_kills"
PHOTOS_PER_LISTING = 2
LISTINGS_PER_SHARD = 200
TURNS = ("job", "feeder", "decoder", "ray_worker", "ray_job")
PROCESS_NAMES = {
    "feeder": b"vision.feeders.feeder",
    "decoder": b"vision.decoding.fork_server",
    "ray_worker": b"ray::_Worker",
}
KILL_AFTER_S = (1.0, 6.0)
"""Least and most seconds of work before a kill."""
NUM_SYNTHETIC = 64


@contextlib.contextmanager
def serve_photos() -> Iterator[tuple[str, list[int]]]:
    """Serve photos; yield the address and, in a list of one, the number of requests."""
    photos = [create_synthetic_photo(n % len(PRODUCTS), 1, np.random.default_rng(n)) for n in range(NUM_SYNTHETIC)]
    num_requests, lock = [0], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                num_requests[0] += 1
            photo = photos[int(Path(self.path).stem) % NUM_SYNTHETIC]
            self.send_response(200)
            self.send_header("Content-Length", str(len(photo)))
            self.end_headers()
            self.wfile.write(photo)

        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore errors of connections that a killed job leaves."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", num_requests
    server.shutdown()


class Job:
    """Runs the same command repeatedly, on either engine."""

    def __init__(self, folder: Path, manifest: Path, output: Path) -> None:
        self._command = [sys.executable, "-m", "listing_vision", "backfill", "run", str(manifest)]
        self._command += ["--model", str(folder), "--output", str(output), "--max-error-share", "0"]
        self._command += ["--listings-per-shard", str(LISTINGS_PER_SHARD)]
        self._process: subprocess.Popen[bytes] | None = None
        self._on_ray = False

    def ensure_running(self, *, ray: bool) -> "subprocess.Popen[bytes]":
        """Return the running job; start it if it does not run, or runs on the other engine."""
        if self._process and self._process.poll() is None and self._on_ray != ray:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        if self._process is None or self._process.poll() is not None:
            log = (FOLDER / "job.log").open("ab")
            command = [*self._command, *(["--ray"] if ray else [])]
            # A process group of its own, since the Ray that a killed job started must be killed too.
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            self._on_ray = ray
        return self._process


def find_victim(turn: str, pid: int) -> int | None:
    """Wait for a process to kill and return its pid."""
    if turn in ("job", "ray_job"):
        return pid
    found = []
    for member in list_process_tree([pid]):
        with contextlib.suppress(OSError):
            if PROCESS_NAMES[turn] in Path(f"/proc/{member}/cmdline").read_bytes():
                found.append(member)
    return random.choice(found) if found else None


def kill_ray_group(pid: int) -> None:
    """Remove what the Ray of a killed job leaves."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def main() -> None:
    options = create_parser(__doc__, kills=20, listings=12_000, seed=0).parse_args()
    random.seed(options.seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder, output = create_default_bundle(), FOLDER / "output"
    Store(str(output)).remove_all()
    num_photos = options.listings * PHOTOS_PER_LISTING
    kills = dict.fromkeys(TURNS, 0)
    with serve_photos() as (address, num_requests):
        photos = [Path(f"{number}.jpg") for number in range(num_photos)]
        manifest = FOLDER / "manifest.csv"
        write_manifest(manifest, photos, per_listing=PHOTOS_PER_LISTING)
        manifest.write_text(
            "\n".join(
                line.replace(",", f",{address}/") if number else line
                for number, line in enumerate(manifest.read_text().splitlines())
            )
        )
        job = Job(folder, manifest, output)
        for number in range(options.kills):
            turn = TURNS[number % len(TURNS)]
            process = job.ensure_running(ray=turn.startswith("ray"))
            # Counted from its first work, since starting takes long.
            before = num_requests[0]
            while num_requests[0] == before and process.poll() is None:
                time.sleep(0.05)
            time.sleep(random.uniform(*KILL_AFTER_S))
            pid = find_victim(turn, process.pid)
            if process.poll() is not None or pid is None:
                raise SystemExit(f"the job ended before kill {number + 1} ({turn}); give it more --listings")
            os.kill(pid, signal.SIGKILL)
            kills[turn] += 1
            print(f"kill {number + 1}: {turn}, {num_requests[0]} photos requested", flush=True)
            if turn in ("job", "ray_job"):
                process.wait()
                kill_ray_group(process.pid)
        while job.ensure_running(ray=False).wait() != 0:
            print("the job stopped; started again", flush=True)
    verified = inspection.verify(Store(str(output)))
    print(verified)
    redone = num_requests[0] - num_photos
    wrong = verified.num_missing + verified.num_duplicated + verified.num_unexpected + len(verified.problems)
    metrics = {
        "kills": float(sum(kills.values())),
        "missing_or_doubled": float(wrong),
        "photos": float(num_photos),
        "photos_read_again": float(redone),
        "shards_redone_per_kill": redone / (LISTINGS_PER_SHARD * PHOTOS_PER_LISTING) / sum(kills.values()),
    }
    details = {
        "kills": kills,
        "photos_per_shard": LISTINGS_PER_SHARD * PHOTOS_PER_LISTING,
        "results": verified.results,
    }
    write_result("backfill_kills", metrics, details)


if __name__ == "__main__":
    main()
