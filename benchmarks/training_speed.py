"""Compare training speed on the CPU, from JPEG files to updated weights, with timm's parts in a plain loop.

    python -m benchmarks.training_speed [--rounds 3]

Same backbone, batch, photo size, augmentation (crop, flip, erasing), channels-last, AdamW, EMA, label smoothing. Each
measurement is a process of its own, in turns. Also printed: the effect of loader processes and of keeping memory mapped
(training/trainer/hardware.py), with page faults and the share of system time.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BUILD, ROOT, create_parser, find_grocery_source, run_cli, write_result
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

FOLDER = BUILD / "training_speed"
NUM_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings that both sides share."""

    backbone: str = "tf_efficientnet_lite0"
    photo_px: int = 160
    batch_size: int = 32
    num_steps: int = NUM_STEPS
    precision: str = "fp32"
    compile: bool = False
    weights: str = "none"
    num_epochs: int = 2
    warmup_epochs: int = 1
    """Warm-up epochs, not measured: caches, compilation, start of loader processes."""


def run_ours(setting: Setting, manifest: Manifest, taxonomy: Taxonomy, *, workers: int | None) -> dict[str, float]:
    """Run the project's trainer; evaluation on val is not measured."""
    from training.recipe import Recipe, Stage
    from training.run import Run
    from training.trainer.hardware import Machine
    from training.trainer.training_loop import TrainingLoop

    train = manifest.select_split("train")
    recipe = Recipe(
        stages=(Stage(photo_px=setting.photo_px, epochs=setting.num_epochs),),
        input_px=setting.photo_px,
        backbone=setting.backbone,
        weights=setting.weights,
        batch_size=setting.batch_size,
        trivial_augment=False,
        checkpoint_every_steps=10**6,
    )
    assert len(train) >= setting.num_steps * setting.batch_size
    with tempfile.TemporaryDirectory() as folder:
        trainer = TrainingLoop(
            recipe,
            manifest_url="",
            manifest=manifest,
            taxonomy=taxonomy,
            run=Run(Path(folder)),
            machine=Machine(num_workers=workers, precision=setting.precision, compile=setting.compile),  # type: ignore[arg-type]
        )
        trainer.run()
        measured = Run(Path(folder)).metrics()[setting.warmup_epochs :]
    seconds = sum(len(train) / record["photos_per_s"] for record in measured)
    return {
        "photos_per_s": len(measured) * len(train) / seconds,
        "data_wait_share": statistics.mean(record["data_wait_share"] for record in measured),
    }


def run_timm(setting: Setting, manifest: Manifest, taxonomy: Taxonomy, *, workers: int | None) -> dict[str, float]:
    """timm's dataset reading, transforms, loader, optimizer, loss and EMA in the order of its training script."""
    import timm
    from PIL import Image
    from timm.data.loader import create_loader
    from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
    from timm.optim._optim_factory import create_optimizer_v2
    from timm.utils.model_ema import ModelEmaV3

    class Photos(torch.utils.data.Dataset[Any]):
        transform: Any = None

        def __init__(self) -> None:
            self.rows = manifest.select_split("train")
            self.targets = self.rows.resolve_labels(taxonomy).category_nodes

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            photo = Image.open(self.rows.get_photo_url(row)).convert("RGB")
            return self.transform(photo), int(self.targets[row])

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = timm.create_model(setting.backbone, num_classes=len(taxonomy.categories))
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=6e-4, weight_decay=0.05)
    ema = ModelEmaV3(model, decay=0.995, use_warmup=True)
    loss_of: Any = LabelSmoothingCrossEntropy(0.1)  # type: ignore[no-untyped-call]
    loader: Any = create_loader(
        Photos(),  # type: ignore[arg-type]  # any data set with a transform will do
        input_size=(3, setting.photo_px, setting.photo_px),
        batch_size=setting.batch_size,
        is_training=True,
        use_prefetcher=device.type == "cuda",
        scale=(0.35, 1.0),
        color_jitter=0.0,
        re_prob=0.25,
        interpolation="bicubic",
        num_workers=workers or 0,
        persistent_workers=bool(workers),
        device=device,
    )
    amp_dtype = {"bf16": torch.bfloat16, "fp32": None}[setting.precision]
    forward = torch.compile(model) if setting.compile else model
    seconds, waiting_s, num_photos, step = 0.0, 0.0, 0, 0
    for epoch in range(setting.num_epochs):
        if epoch == setting.warmup_epochs:
            seconds, waiting_s, num_photos = 0.0, 0.0, 0
        begun_s = mark_s = time.perf_counter()
        model.train()
        for photos, targets in loader:
            waiting_s += time.perf_counter() - mark_s
            photos = photos.to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                loss = loss_of(forward(photos), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            num_photos += len(targets)
            ema.update(model, step=step)
            mark_s = time.perf_counter()
        float(loss)
        seconds += time.perf_counter() - begun_s
    return {"photos_per_s": num_photos / seconds, "data_wait_share": waiting_s / seconds}


CANDIDATES = {
    "ours": (run_ours, None, True),
    "ours, no loader process": (run_ours, 0, True),
    "ours, 1 loader process": (run_ours, 1, True),
    "ours, memory not kept": (run_ours, None, False),
    "timm, no loader process": (run_timm, 0, False),
    "timm, 1 loader process": (run_timm, 1, False),
    "timm, 2 loader processes": (run_timm, 2, False),
}


def prepare_manifest(num_train: int, num_val: int) -> Path:
    """Return a manifest of so many photos of Grocery Store, or of synthetic ones where it is missing."""
    import numpy as np

    try:
        run_cli("data", "import", "grocery-store", find_grocery_source(), "--output", FOLDER / "all")
    except SystemExit:
        run_cli("data", "synthesize", "--output", FOLDER / "all", "--train-listings", num_train, "--val-listings", 50)
    whole = Manifest.load(str(FOLDER / "all" / "manifest.parquet"))
    splits = np.array(whole.column("split").to_pylist())
    labels = np.array(whole.column("category").to_pylist())
    random = np.random.default_rng(0)
    train = random.permutation(np.flatnonzero(splits == "train"))[:num_train]
    val = random.permutation(np.flatnonzero((splits == "val") & np.isin(labels, labels[train])))[:num_val]
    path = FOLDER / "all" / "few.parquet"
    whole.take(np.concatenate([train, val])).save(str(path))
    return path


def measure_one(name: str, manifest: Path) -> dict[str, float]:
    """Measure in this process."""
    measure, workers, keeps_memory = CANDIDATES[name]
    if not keeps_memory:
        import training.trainer.train_step

        vars(training.trainer.train_step)["keep_freed_memory"] = lambda: None
    loaded, taxonomy = Manifest.load(str(manifest)), Taxonomy.load(manifest.parent / "taxonomy.json")
    figures = measure(Setting(), loaded, taxonomy, workers=workers)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return figures | {
        "page_faults": used.ru_minflt,
        "system_share": used.ru_stime / (used.ru_utime + used.ru_stime),
        "rss_gib": used.ru_maxrss / 2**20,
    }


def main() -> None:
    parser = create_parser(__doc__, rounds=3)
    parser.add_argument("--one", nargs=2, metavar=("CANDIDATE", "MANIFEST"), help="measure in this process, print JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure_one(asked.one[0], Path(asked.one[1]))))
        return
    manifest = prepare_manifest(NUM_STEPS * Setting().batch_size, 16)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    for _ in range(asked.rounds):
        for name, results in rounds.items():
            command = [sys.executable, "-m", "benchmarks.training_speed", "--one", name, str(manifest)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name:28} {results[-1]['photos_per_s']:6.1f} photos/s", flush=True)
    medians = {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in rounds.items()
    }
    for name, figures in medians.items():
        print(
            f"{name:28} {figures['photos_per_s']:6.1f} photos/s, {figures['data_wait_share']:4.0%} waiting for data, "
            f"{figures['page_faults'] / 1e6:5.2f} M page faults, {figures['system_share']:4.0%} system time"
        )
    best_timm = max(figures["photos_per_s"] for name, figures in medians.items() if name.startswith("timm"))
    metrics = {
        "ratio_to_timm_cpu": medians["ours"]["photos_per_s"] / best_timm,
        "photos_per_s": medians["ours"]["photos_per_s"],
        "photos_per_s_timm": best_timm,
        "photos_per_s_no_loader_process": medians["ours, no loader process"]["photos_per_s"],
        "photos_per_s_memory_not_kept": medians["ours, memory not kept"]["photos_per_s"],
    }
    write_result("training_speed", metrics, {"setting": vars(Setting()), "medians": medians, "rounds": rounds})


if __name__ == "__main__":
    main()
