"""The verb `demo`: the main path once, by the commands that a user types."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vision.errors import ListingVisionError
from vision.runtime.progress import Progress, stop_heartbeat

if TYPE_CHECKING:
    from vision.manifest import Manifest

__all__ = ["demo"]

TRAINING_PHOTO_BUDGET = 7_000
"""Photos times epochs: two to three minutes on two cores at 128 px (53 photos/s)."""
NUM_LISTINGS_SHOWN = 5


def demo(
    data: Annotated[
        Path | None, typer.Option(help="A Grocery Store or split/class folder instead of synthetic photos.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where everything is written; emptied first.")] = Path("demo"),
) -> None:
    """Prepare photos, fine-tune, evaluate, export, serve on Triton, classify over gRPC, shut down. Takes minutes.

    Example: listing-vision demo --data ~/GroceryStoreDataset
    """
    from vision.manifest import Manifest

    if data and data.resolve().is_relative_to(folder.resolve()):
        raise ListingVisionError(f"{data} lies inside {folder}, which the demo empties; give another --folder")
    if folder.exists() and not (folder / ".demo").exists() and any(folder.iterdir()):
        raise ListingVisionError(f"{folder} holds something that is not an earlier demo; give another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ".demo").touch()
    started_s = time.monotonic()
    stop_heartbeat()  # the commands that it runs have their own
    _prepare(data, folder / "data")
    manifest = folder / "data" / "manifest.parquet"
    _print_step("2/6 fine-tune a small backbone with ImageNet weights")
    recipe = folder / "recipe.toml"
    recipe.write_text(_format_recipe(Manifest.load(str(manifest))), encoding="utf-8")
    _run("train", manifest, "--recipe", recipe, "--run", folder / "run")
    _print_step("3/6 export to ONNX and TorchScript, compare with the trained model, certify on the val split")
    _run("export", folder / "run", "--output", folder / "bundle", "--name", "demo")
    _print_step("4/6 evaluate the export on the test split")
    _run("evaluate", folder / "bundle", manifest, "--split", "test", "--output", folder / "evaluation")
    _print_step("5/6 start Triton and the gateway, send listings over gRPC")
    with _start_serve(folder) as address:
        for title, photos in _select_listings(Manifest.load(str(manifest)).select_split("test")):
            print(f"\n{title}", flush=True)
            _run("classify", *photos, "--server", address)
    _print_step("6/6 Triton and the gateway are shut down")
    print(f"\nThe demo took {time.monotonic() - started_s:.0f} s. Written: {folder}/ (bundle, run, evaluation).")
    print("To serve this model: make serve\n")
    print(f"Then classify photos: .venv/bin/listing-vision classify PHOTO… --server {SERVE_ADDRESS}")


SERVE_ADDRESS = "127.0.0.1:50051"


def _prepare(data: Path | None, output: Path) -> None:
    if data is None:
        _print_step("1/6 draw synthetic listing photos (DATA=folder takes real ones)")
        _run("data", "synthesize", "--output", output)
    elif (data / "classes.csv").is_file() or (data / "dataset" / "classes.csv").is_file():
        _print_step(f"1/6 import the Grocery Store photos of {data}")
        _run("data", "import", "grocery-store", data, "--output", output)
    else:
        _print_step(f"1/6 import the folder {data}")
        _run("data", "import", "folder", data, "--output", output)


def _format_recipe(manifest: "Manifest") -> str:
    """Return the quick recipe with as many epochs as fit `TRAINING_PHOTO_BUDGET`."""
    epochs = max(2, min(16, round(TRAINING_PHOTO_BUDGET / len(manifest.select_split("train")))))
    return f"input_px = 160\n\n[[stages]]\nphoto_px = 128\nepochs = {epochs}\n"


@contextlib.contextmanager
def _start_serve(folder: Path) -> Iterator[str]:
    log_path = folder / "serve.log"
    print(f"$ listing-vision serve {folder / 'bundle'} --port 0   (log: {log_path})", flush=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen([*_CLI, "serve", str(folder / "bundle"), "--port", "0"], stdout=log, stderr=log)
    try:
        with Progress("starting the service"):
            port = _wait_for_port(process, log_path)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for line in log_path.read_text().splitlines():
            if " WARNING " in line or "Triton (pid" in line:
                print(line.split(": ", 1)[-1])
    if code != 0:
        raise ListingVisionError(f"the gateway ended with status {code}; see {log_path}")


def _wait_for_port(process: "subprocess.Popen[bytes]", log_path: Path) -> str:
    for _ in range(600):
        found = re.search(r"listening on \S+:(\d+)", log_path.read_text())
        if found:
            return found.group(1)
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise ListingVisionError(f"the gateway did not come up:\n{log_path.read_text()[-2000:]}")


def _select_listings(test: "Manifest") -> Iterator[tuple[str, list[str]]]:
    groups = test.number_listings()
    step = max(1, (int(groups.max()) + 1) // NUM_LISTINGS_SHOWN)
    # An odd stride, so that the categories of a cyclic manifest differ.
    for group in range(0, int(groups.max()) + 1, step + 1):
        rows = [int(row) for row in (groups == group).nonzero()[0]]
        first = test.table.slice(rows[0], 1).to_pylist()[0]
        brand = first["brand"] or "brand not labelled"
        yield (
            f"listing {first['listing_id']}, truly {first['category']}, {brand}:",
            [test.get_photo_url(r) for r in rows],
        )


def _print_step(text: str) -> None:
    print(f"\n== {text}", flush=True)


_CLI = [sys.executable, "-m", "listing_vision"]


def _run(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"$ listing-vision {' '.join(words)}", flush=True)
    done = subprocess.run([*_CLI, *words], env={**os.environ, "LISTING_VISION_LOG": "INFO"})
    if done.returncode != 0:
        raise ListingVisionError(f"`listing-vision {' '.join(words)}` ended with status {done.returncode}")
