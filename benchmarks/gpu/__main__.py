"""Measure one GPU in under ten minutes: the model, decoding, a backfill from files, and the service.

    python -m benchmarks.gpu [--bundle FOLDER] [--photos 12000] [--parts model decode backfill service training]
        [--agreement BUNDLE MANIFEST]

`model`: photos in GPU memory, by batch size and precision, kernels recorded as CUDA graphs. `decode`: JPEGs of
1440x1080, 300 KB, on all cores (the project's decoder, in decode workers) and on the card (nvJPEG, scaled there).
`backfill`: from files to logits, decoded either way; its share of the slower of decoding and model, and the share of
photos whose likeliest leaf differs between the two. `service`: gateway and Triton, responses checked. `training`: the
trainer beside timm's parts. `--agreement`: how decoding on the card changes a trained model's suggestions and
guarantees, on real photos (`benchmarks.gpu.agreement`). Needs one NVIDIA GPU; `--device cpu` only tests the script.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.backfill import FOLDER, create_photos
from benchmarks.common import BUILD, create_parser, write_result
from benchmarks.gpu import agreement, backfill, service
from benchmarks.gpu.network import BATCHES, CudaGraph, Network, create_networks, photos_per_s
from benchmarks.serving import create_default_bundle
from vision.bundle import Bundle, load_bundle
from vision.errors import DeviceDecoderUnavailable
from vision.images.gpu_decoding import DECODER_LIBRARIES, DecoderLibrary
from vision.manifest import Manifest

PARTS = ("model", "decode", "backfill", "service", "training")
GPU_BATCH = 64
BACKFILL_BATCH = 128


class _MetricsRecorder:
    """Collects figures, so that they are written even if a later part fails."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.details: dict[str, Any] = {}

    def record(self, name: str, value: float) -> None:
        self.metrics[name] = value
        print(f"{name:<44} {value:.4g}", flush=True)


def measure_model(found: _MetricsRecorder, bundle: Bundle, device: torch.device, batches: tuple[int, ...]) -> Network:
    """Return the fastest network; its rate is `model_photos_per_s`."""
    side = bundle.info.preprocessing.input_px
    rates: dict[str, dict[str, float]] = {}
    best: tuple[float, Network] = (0.0, lambda photos: (photos,))
    for name, network, sizes in create_networks(bundle, device, batches=batches):
        rates[name] = {}
        for size in sizes:
            photos = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, device=device)
            rates[name][str(size)] = rate = photos_per_s(network, photos)
            print(f"model {name}, batch {size}: {rate:.0f} photos/s", flush=True)
            best = max(best, (rate, network), key=lambda pair: pair[0])
    found.details["model_photos_per_s"] = rates
    found.record("model_photos_per_s", best[0])
    if device.type != "cuda":
        return best[1]
    return CudaGraph(best[1], torch.zeros(BACKFILL_BATCH, side, side, 3, dtype=torch.uint8, device=device))


def measure_decode(found: _MetricsRecorder, bundle: Bundle, device: torch.device, paths: list[Path]) -> None:
    warm_up = 4 * GPU_BATCH
    on_cores = backfill.measure_rate(lambda some: backfill.decode_on_cpu(bundle, some), paths, warm_up=warm_up)
    found.record("decode_on_cores_photos_per_s", on_cores)
    on_card = {}
    for library in DECODER_LIBRARIES:

        def decode(some: list[Path], library: DecoderLibrary = library) -> None:
            backfill.decode_on_gpu(bundle, device, some, GPU_BATCH, library)

        try:
            on_card[library] = backfill.measure_rate(decode, paths, warm_up=warm_up)
        except DeviceDecoderUnavailable as error:
            print(f"not measured: {error}", flush=True)
            continue
        found.record(f"decode_on_card_by_{library}_photos_per_s", on_card[library])
    if not on_card:
        raise SystemExit("no library decodes on this card")
    # By the library that backfills below and `DeviceDecoder` take.
    found.record("decode_on_card_photos_per_s", next(iter(on_card.values())))
    found.record("decode_photos_per_s", max(on_cores, *on_card.values()))


def measure_backfill(
    found: _MetricsRecorder, bundle: Bundle, network: Network, device: torch.device, paths: list[Path]
) -> None:
    leaves = {}
    ceilings = {
        "on_cores": min(found.metrics["model_photos_per_s"], found.metrics["decode_on_cores_photos_per_s"]),
        "on_card": min(found.metrics["model_photos_per_s"], found.metrics["decode_on_card_photos_per_s"]),
    }
    for name, work in (("on_cores", backfill.classify_on_cpu), ("on_card", backfill.classify_on_gpu)):
        batch = BACKFILL_BATCH if name == "on_cores" else GPU_BATCH

        def run(some: list[Path], work: Any = work, name: str = name, batch: int = batch) -> None:
            leaves[name] = work(bundle, network, device, some, batch)

        rate = backfill.measure_rate(run, paths, warm_up=4 * GPU_BATCH)
        found.record(f"backfill_{name}_photos_per_s", rate)
        found.record(f"backfill_{name}_share_of_ceiling", rate / ceilings[name])
        found.record(f"backfill_{name}_share_of_model", rate / found.metrics["model_photos_per_s"])
    found.record("backfill_changed_answers_share", float((leaves["on_cores"] != leaves["on_card"]).mean()))
    faster = max(("on_cores", "on_card"), key=lambda name: found.metrics[f"backfill_{name}_photos_per_s"])
    found.record("end_to_end_share_of_ceiling", found.metrics[f"backfill_{faster}_share_of_ceiling"])


def measure_agreement(found: _MetricsRecorder, bundle: Path, manifest: str, device: torch.device) -> None:
    metrics, found.details["agreement"] = agreement.measure(load_bundle(bundle), Manifest.load(manifest), device)
    for name, value in metrics.items():
        found.record(f"agreement_{name}", value)


def measure_service(found: _MetricsRecorder, folder: Path, photos: list[Path], *, on_gpu: bool) -> None:
    cores = len(os.sched_getaffinity(0))
    measured = service.measure(
        folder,
        [path.read_bytes() for path in photos],
        BUILD / "gpu",
        backend="python-gpu" if on_gpu else "python",
        callers=(8, 256) if on_gpu else (2,),
        workers=max(1, cores // 3),
        processes=max(1, cores // 4),
        seconds=8.0 if on_gpu else 2.0,
    )
    for callers, figures in measured.items():
        found.details[f"service_c{callers}"] = figures._asdict()
        found.record(f"service_c{callers}_photos_per_s", figures.photos_per_s)
        found.record(f"service_c{callers}_p50_ms", figures.p50_ms)
        found.record(f"service_c{callers}_p99_ms", figures.p99_ms)
        found.record(
            f"service_c{callers}_wrong", float(sum(figures.status_counts.values()) - figures.status_counts.get("OK", 0))
        )


def measure_training(found: _MetricsRecorder) -> None:
    from benchmarks.training_speed_gpu import measure_in_subprocess

    for side in ("ours", "timm"):
        figures = measure_in_subprocess("tf_efficientnet_lite0", side)
        found.record(f"training_{side}_photos_per_s", figures["photos_per_s"])
    found.record(
        "training_ratio_to_timm",
        found.metrics["training_ours_photos_per_s"] / found.metrics["training_timm_photos_per_s"],
    )


def measure(found: _MetricsRecorder, options: argparse.Namespace) -> None:
    folder: Path = options.bundle or create_default_bundle()
    device, bundle = torch.device(options.device), load_bundle(folder)
    on_gpu = device.type == "cuda"
    found.details |= {"bundle_precision": bundle.info.precision, "side_px": bundle.info.preprocessing.input_px}
    network: Network | None = None
    paths = backfill.repeat_paths(create_photos(FOLDER / "photos"), options.photos)
    if "model" in options.parts:
        network = measure_model(found, bundle, device, BATCHES if on_gpu else BATCHES[:2])
    if "decode" in options.parts:
        measure_decode(found, bundle, device, paths)
    if "backfill" in options.parts and network:
        measure_backfill(found, bundle, network, device, paths)
    if options.agreement:
        measure_agreement(found, Path(options.agreement[0]), options.agreement[1], device)
    if "service" in options.parts:
        measure_service(found, folder, paths[:64], on_gpu=on_gpu)
    if "training" in options.parts and on_gpu:
        measure_training(found)


def main() -> None:
    parser = create_parser(__doc__, bundle=None, photos=12_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--agreement", nargs=2, metavar=("BUNDLE", "MANIFEST"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine has no NVIDIA GPU; nothing is measured without one (--device cpu: it runs)")
    found = _MetricsRecorder()
    try:
        measure(found, options)
    finally:
        if options.device == "cuda" and found.metrics:
            write_result("gpu", found.metrics, found.details | {"torch": torch.__version__, "photos": options.photos})


if __name__ == "__main__":
    main()
