"""Compare training speed on a GPU with timm's parts, and measure the share of the card's bf16 peak.

    python -m benchmarks.training_speed_gpu

Also printed: the effect of `--decode-on device` with two loader processes. Takes a quarter of an hour. Photos are
synthetic and weights random, so nothing is downloaded. Needs one NVIDIA GPU.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BUILD, ROOT, run_cli, write_result
from benchmarks.training_speed import Setting, run_ours, run_timm
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

FOLDER = BUILD / "training_speed_gpu"
SETTINGS = {
    "tf_efficientnet_lite0": Setting(
        photo_px=224,
        batch_size=256,
        num_steps=12,
        num_epochs=24,
        warmup_epochs=8,
        precision="bf16",
        compile=True,
    ),
    "convnext_base": Setting(
        backbone="convnext_base",
        photo_px=224,
        batch_size=128,
        num_steps=24,
        num_epochs=12,
        warmup_epochs=4,
        precision="bf16",
        compile=True,
    ),
}
"""Loaders read up to 60 batches ahead, so the epochs that are measured are several times as many."""

PEAK_BF16_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "4090": 165.0,
}
"""Dense peak rates from the cards' data sheets."""


def count_training_flops_per_photo(setting: Setting) -> float:
    """Return the FLOPs of forward and backward, counted by PyTorch."""
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    model = timm.create_model(setting.backbone)
    photos = torch.randn(2, 3, setting.photo_px, setting.photo_px)
    with FlopCounterMode(display=False) as counter:
        model(photos).sum().backward()
    return float(counter.get_total_flops() / 2)


def run_ours_with_gpu_decoding(
    setting: Setting, manifest: Manifest, taxonomy: Taxonomy, *, workers: int | None
) -> dict[str, float]:
    import training.trainer.hardware

    vars(training.trainer.hardware)["Machine"] = functools.partial(
        training.trainer.hardware.Machine, decode_on="device"
    )
    return run_ours(setting, manifest, taxonomy, workers=workers)


FEW_WORKERS = 2
SIDES = {
    "ours": (run_ours, None),
    "timm": (run_timm, None),
    "ours_few_workers": (run_ours, FEW_WORKERS),
    "ours_few_workers_decoding_on_the_card": (run_ours_with_gpu_decoding, FEW_WORKERS),
}
"""Function and number of loader processes by side; None: as many as the cores allow."""


def measure_in_subprocess(name: str, side: str) -> dict[str, float]:
    """Measure in a process of its own, on synthetic photos."""
    manifest = FOLDER / "manifest.parquet"
    if not manifest.exists():
        run_cli(
            "data",
            "synthesize",
            "--output",
            FOLDER,
            "--train-listings",
            1700,
            "--val-listings",
            100,
            "--test-listings",
            1,
        )
    command = [sys.executable, "-m", "benchmarks.training_speed_gpu", side, name, str(manifest)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {side}: {figures['photos_per_s']:.0f} photos/s", flush=True)
    return figures


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU that PyTorch can use; `training_speed` is for the CPU")
    if len(sys.argv) > 1:
        side, name, path = sys.argv[1:]
        taxonomy = Taxonomy.load(Path(path).parent / "taxonomy.json")
        measure, asked_workers = SIDES[side]
        workers = asked_workers or max(1, min(16, len(os.sched_getaffinity(0)) - 1))
        print(json.dumps(measure(SETTINGS[name], Manifest.load(path), taxonomy, workers=workers)))
        return
    results: dict[str, dict[str, Any]] = {}
    for name, setting in SETTINGS.items():
        results[name] = {}
        # The larger model waits for no loader.
        few = [side for side in SIDES if "few" in side] if name == "tf_efficientnet_lite0" else []
        for side in ("ours", "timm", "ours", "timm", *few):
            results[name].setdefault(side, []).append(measure_in_subprocess(name, side))
        flops = count_training_flops_per_photo(setting)
        card = torch.cuda.get_device_name()
        peak = next((tflops for key, tflops in PEAK_BF16_TFLOPS.items() if key in card), None)
        best = max(f["photos_per_s"] for f in results[name]["ours"])
        results[name]["share_of_bf16_peak"] = best * flops / (peak * 1e12) if peak else None
    metrics: dict[str, float] = {}
    for name, both in results.items():
        best_ours, best_timm = (max(f["photos_per_s"] for f in both[side]) for side in ("ours", "timm"))
        metrics |= {f"photos_per_s_{name}": best_ours, f"ratio_to_timm_{name}": best_ours / best_timm}
        if both["share_of_bf16_peak"] is not None:
            metrics[f"share_of_bf16_peak_{name}"] = both["share_of_bf16_peak"]
    for side in (side for side in SIDES if "few" in side):
        metrics[f"photos_per_s_{side}"] = results["tf_efficientnet_lite0"][side][0]["photos_per_s"]
    metrics["ratio_to_timm"] = min(value for key, value in metrics.items() if key.startswith("ratio_to_timm_"))
    metrics["photos_per_s"] = metrics["photos_per_s_tf_efficientnet_lite0"]
    if "share_of_bf16_peak_convnext_base" in metrics:
        metrics["share_of_bf16_peak"] = metrics["share_of_bf16_peak_convnext_base"]
    write_result("training_speed_gpu", metrics, results)


if __name__ == "__main__":
    main()
