"""Name the machine, find the data, run verbs and write the result of a benchmark."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = [
    "BUILD",
    "create_parser",
    "describe_commit",
    "describe_machine",
    "find_grocery_source",
    "run_cli",
    "write_result",
]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BUILD = ROOT / "build" / "benchmarks"
"""Folder of generated files; not committed."""


def find_grocery_source() -> Path:
    """Return the Grocery Store data set: `LISTING_VISION_DATA`/grocery-store, else ../shared/data/grocery-store."""
    data = Path(os.environ.get("LISTING_VISION_DATA") or ROOT.parent / "shared" / "data")
    source = data / "grocery-store"
    if not (source / "dataset" / "classes.csv").is_file():
        raise SystemExit(
            f"the Grocery Store data set is not at {source}; set LISTING_VISION_DATA to the folder above it"
        )
    return source


def create_parser(description: str | None, **defaults: float | None) -> argparse.ArgumentParser:
    """Return a parser with an option for each default: a number of its type, or a path where it is None."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=Path if default is None else type(default), default=default
        )
    return parser


def run_cli(*words: object, checkout: Path = ROOT) -> None:
    """Run a verb of a checkout's console script with its output shown; a failure ends the benchmark."""
    variables = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, "-m", "listing_vision", *map(str, words)], check=True, cwd=checkout, env=variables)


def write_result(name: str, metrics: dict[str, float], details: dict[str, Any]) -> None:
    """Print the metrics and write `benchmarks/results/NAME.json`."""
    for key, value in metrics.items():
        print(f"{key:<28} {value:.4g}")
    result = {
        "name": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "commit": describe_commit(),
        "metrics": metrics,
        "details": details,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}; machine: {result['machine']}")


def describe_machine() -> dict[str, Any]:
    """Return cores, processor, GPU or None, and Python."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "gpu": _gpu(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _gpu() -> str | None:
    try:
        import torch
    except ModuleNotFoundError:  # the load generator runs without PyTorch
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def describe_commit(checkout: Path = ROOT) -> str:
    """Return the commit of a working tree, with `-dirty` where anything but results differs from it."""
    if not shutil.which("git"):
        return "unknown"

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=checkout).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")
