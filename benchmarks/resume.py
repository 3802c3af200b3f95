"""Kill training runs at random, resume them, and compare their weights bit for bit with unbroken runs.

    python -m benchmarks.resume [--kills 10]

On one and on two ranks. SIGKILL goes to the whole process group at random moments, checkpoint writing included, until
each run has been killed often enough; then it is left to finish.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import rmtree

import safetensors.torch
import torch

from benchmarks.common import BUILD, ROOT, create_parser, run_cli, write_result
from training.run import Run

FOLDER = BUILD / "resume"
RECIPE = """
backbone = "tf_efficientnet_lite0"
input_px = 64
batch_size = 16
checkpoint_every_steps = 2
[[stages]]
photo_px = 48
epochs = 1
trains = "heads"
[[stages]]
photo_px = 64
epochs = 3
"""


def start(run: Path, ranks: int) -> "subprocess.Popen[bytes]":
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "127.0.0.1:0"]
    words = [str(FOLDER / "data" / "manifest.parquet"), "--recipe", str(FOLDER / "recipe.toml")]
    with (run.parent / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(
            [
                *(sys.executable, *(launcher if ranks > 1 else []), "-m", "training", *words),
                *("--run-folder", str(run), "--workers", "0"),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_with_kills(run: Path, ranks: int, kills: int, max_s: float) -> int:
    """Kill the run so often, each time after further progress, then let it finish; return the number of kills."""
    done = 0
    while done < kills:
        process = start(run, ranks)
        before = progress(run)
        while process.poll() is None and progress(run) == before:
            time.sleep(0.02)
        time.sleep(random.random() * max_s)
        if process.poll() is not None:
            break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Ranks are sessions of their own; they end with their launcher.
        while any(Path(f"/proc/{child}").exists() for child in children):
            time.sleep(0.02)
        done += 1
    if start(run, ranks).wait() != 0:
        raise SystemExit(f"the run did not finish; see {run}.log")
    return done


def progress(run: Path) -> str:
    return max((path.name for path in (run / "checkpoints").glob("step-*")), default="")


def main() -> None:
    parser = create_parser(__doc__, seed=0)
    parser.add_argument("--kills", type=int, default=10, help="of each run, at most")
    asked = parser.parse_args()
    random.seed(asked.seed)
    rmtree(FOLDER, ignore_errors=True)
    run_cli(
        "data",
        "synthesize",
        "--output",
        FOLDER / "data",
        "--train-listings",
        40,
        "--val-listings",
        30,
        "--test-listings",
        1,
    )
    (FOLDER / "recipe.toml").write_text(RECIPE)
    kills, equal, compared = 0, 0, 0
    details = {}
    for ranks in (1, 2):
        unbroken = FOLDER / f"unbroken-{ranks}"
        if start(unbroken, ranks).wait() != 0:
            raise SystemExit(f"the run did not finish; see {unbroken}.log")
        of_run = run_with_kills(FOLDER / f"broken-{ranks}", ranks, asked.kills, max_s=1.0)
        one, other = (
            safetensors.torch.load_file(Run(folder).weights_path) for folder in (unbroken, FOLDER / f"broken-{ranks}")
        )
        same = sum(torch.equal(one[name], other[name]) for name in one)
        print(f"{ranks} rank(s): killed {of_run} times, {same} of {len(one)} tensors bit-equal")
        details[f"ranks_{ranks}"] = {"kills": of_run, "tensors": len(one), "bit_equal": same}
        kills, equal, compared = kills + of_run, equal + same, compared + len(one)
    write_result("resume", {"bit_equal_share": equal / compared, "kills": kills}, details)


if __name__ == "__main__":
    main()
