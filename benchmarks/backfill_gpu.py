"""From JPEG files to answers on a GPU: decoded on its cores or on the card, each as a share of the model's own ceiling.

    python -m benchmarks.backfill_gpu [--bundle FOLDER] [--batch 128] [--photos 20000] [--device cuda]

The ceiling is the model alone on photos that lie on the card already. `cpu` is the pipeline of a backfill: photos read
on threads, decoded in child processes, one a core, computed in batches. `gpu` reads on threads and decodes, scales and
computes on the card (nvJPEG through torchvision); its resizing differs from Pillow's, so its answers may too, and the
share of photos whose likeliest leaf differs is printed. Model: the bundle's network in PyTorch, compiled, TF32. Needs
one NVIDIA GPU; `--device cpu` only shows that it runs.
"""

import argparse
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision

from benchmarks.backfill import FOLDER, photo_files
from benchmarks.common import write_result
from benchmarks.serving import default_bundle
from serving.backfill.engines import make_decoder
from serving.backfill.photos import Reader
from serving.backfill.pipeline import READERS_PER_DECODER, Pipeline, Waits
from serving.backfill.plan import PhotosOfShard
from training.bundle_model import load_bundle_model
from vision.bundle import Bundle, load_bundle
from vision.engine import Logits

SECONDS = 10.0
PHOTOS_PER_SHARD = 500
Network = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def network(bundle: Bundle, device: torch.device) -> Network:
    """Logits and embedding of (P, S, S, 3) uint8 photos on the device."""
    torch.set_float32_matmul_precision("high")
    model = load_bundle_model(bundle).to(device)
    compiled = torch.compile(model) if device.type == "cuda" else model

    def run(photos_nhwc: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return tuple(compiled(photos_nhwc))

    return run


def ceiling(run: Network, photos: torch.Tensor) -> float:
    """Photos/s of the model alone."""
    for _ in range(5):
        run(photos)
    number, began_s = 0, time.monotonic()
    while time.monotonic() - began_s < SECONDS:
        # What is asked for is here: the card is not ahead by more than a batch.
        run(photos)[0].cpu()
        number += len(photos)
    return number / (time.monotonic() - began_s)


def decoded_on_cores(bundle: Bundle, run: Network, device: torch.device, paths: list[Path], batch: int) -> np.ndarray:
    """Likeliest leaf of each photo."""
    stop = threading.Event()

    def infer(photos_nhwc: np.ndarray) -> Logits:
        return Logits(*(part.float().cpu().numpy() for part in run(torch.tensor(photos_nhwc, device=device))))

    decoders = [make_decoder(bundle, isolate=True) for _ in os.sched_getaffinity(0)]
    pipeline = Pipeline(
        Reader("", stop=stop),
        decoders,
        infer,
        num_infer_threads=2,
        photos_at_once=batch,
        stop=stop,
        waits=Waits(),
    )
    names = [str(path) for path in paths]
    shards = (
        PhotosOfShard(number=at, listing_ids=["x"], photos=some, groups=np.zeros(len(some), np.int64))
        for at in range(0, len(names), PHOTOS_PER_SHARD)
        if (some := names[at : at + PHOTOS_PER_SHARD])
    )
    leaves = {done.shard.number: done.logits.category.argmax(axis=1) for done in pipeline.run(shards)}
    for decoder in decoders:
        decoder.close()
    return np.concatenate([leaves[number] for number in sorted(leaves)])


def decoded_on_card(bundle: Bundle, run: Network, device: torch.device, paths: list[Path], batch: int) -> np.ndarray:
    """The same, of JPEGs that the card decodes."""
    side = bundle.info.preprocessing.input_px
    leaves = []
    with ThreadPoolExecutor(READERS_PER_DECODER * len(os.sched_getaffinity(0))) as readers:
        for files in ahead(readers, paths, batch):
            encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
            photos = torchvision.io.decode_jpeg(encoded, device=device)
            scaled = [
                torch.nn.functional.interpolate(photo[None].float(), (side, side), mode="bicubic", antialias=True)
                for photo in photos
            ]
            pixels = torch.cat(scaled).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            leaves.append(run(pixels)[0].argmax(dim=1).cpu().numpy())
    return np.concatenate(leaves)


def ahead(readers: ThreadPoolExecutor, paths: list[Path], batch: int) -> Iterator[list[bytes]]:
    """Batches of files, the next one read while one is computed."""
    waiting = None
    for at in range(0, len(paths), batch):
        following = [readers.submit(path.read_bytes) for path in paths[at : at + batch]]
        if waiting:
            yield [reading.result() for reading in waiting]
        waiting = following
    if waiting:
        yield [reading.result() for reading in waiting]


def repeated(paths: Iterable[Path], number: int) -> list[Path]:
    return list(itertools.islice(itertools.cycle(paths), number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine has no NVIDIA GPU; nothing is measured without one (--device cpu: it runs)")
    device, bundle = torch.device(options.device), load_bundle(options.bundle or default_bundle())
    run, side = network(bundle, device), bundle.info.preprocessing.input_px
    random_photos = torch.randint(0, 256, (options.batch, side, side, 3), dtype=torch.uint8, device=device)
    top = ceiling(run, random_photos)
    print(f"the model alone, batches of {options.batch}: {top:.1f} photos/s", flush=True)
    paths = repeated(photo_files(FOLDER / "photos"), options.photos)
    metrics, leaves = {"model_photos_per_s": top}, {}
    for name, decode in (("cpu", decoded_on_cores), ("gpu", decoded_on_card)):
        decode(bundle, run, device, paths[: 2 * options.batch], options.batch)
        began_s = time.monotonic()
        leaves[name] = decode(bundle, run, device, paths, options.batch)
        rate = len(paths) / (time.monotonic() - began_s)
        metrics[f"{name}_decode_photos_per_s"] = rate
        metrics[f"{name}_decode_share_of_ceiling"] = rate / top
        print(f"decoded on {name}: {rate:.1f} photos/s, {rate / top:.1%} of the ceiling", flush=True)
    metrics["changed_answers_share"] = float((leaves["cpu"] != leaves["gpu"]).mean())
    if device.type == "cuda":
        write_result("backfill_gpu", metrics, {"batch": options.batch, "photos": len(paths), "side_px": side})
    else:
        print(metrics)


if __name__ == "__main__":
    main()
