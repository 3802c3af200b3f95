"""Classify and decode JPEG files, decoded on the machine's cores or on the card."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.feeding import cut_shards, open_pipeline
from benchmarks.gpu.network import Network
from vision.bundle import Bundle
from vision.engine import Logits
from vision.images.gpu_decoding import DecoderLibrary, DeviceDecoder, find_plain_crop

__all__ = ["classify_on_cpu", "classify_on_gpu", "decode_on_cpu", "decode_on_gpu", "measure_rate", "repeat_paths"]

PHOTOS_PER_SHARD = 500
GPU_THREADS = 3
"""Threads: one reads files and headers while another decodes or runs the model."""
_NONE = torch.empty(0, 0, 0, 3, dtype=torch.uint8)


def repeat_paths(paths: Iterable[Path], number: int) -> list[Path]:
    return list(itertools.islice(itertools.cycle(paths), number))


def measure_rate(work: Callable[[list[Path]], object], paths: list[Path], *, warm_up: int) -> float:
    """Return photos/s after a warm-up."""
    work(paths[:warm_up])
    began_s = time.monotonic()
    work(paths)
    return len(paths) / (time.monotonic() - began_s)


def decode_on_cpu(bundle: Bundle, paths: list[Path]) -> None:
    """Decode files as a backfill does, with one decode worker per core, and drop the pixels."""
    classify_on_cpu(bundle, None, torch.device("cpu"), paths, batch=64)


def classify_on_cpu(
    bundle: Bundle, run: Network | None, device: torch.device, paths: list[Path], batch: int
) -> npt.NDArray[np.int64]:
    """Return the likeliest leaf of each photo through the backfill pipeline; zeros without a network."""
    nothing = np.zeros((batch, 1), np.float32)

    def infer(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        if run is None:
            return Logits(*(nothing[: len(photos_nhwc)],) * len(Logits._fields))
        return Logits(*(part.float().cpu().numpy() for part in run(torch.tensor(photos_nhwc, device=device))))

    num_cores, names = len(os.sched_getaffinity(0)), [str(path) for path in paths]
    with open_pipeline(bundle.info.preprocessing, infer, num_decoders=num_cores, batch_size=batch) as (pipeline, _):
        shards = cut_shards(names, PHOTOS_PER_SHARD)
        leaves = {done.shard.number: done.logits.category.argmax(axis=1) for done in pipeline.run(shards, base_url="")}
    return np.concatenate([leaves[number] for number in sorted(leaves)])


def decode_on_gpu(
    bundle: Bundle, device: torch.device, paths: list[Path], batch: int, library: DecoderLibrary | None = None
) -> None:
    """Decode and scale files on the card, and drop the pixels."""
    classify_on_gpu(bundle, lambda photos: (photos[:, 0, 0],), device, paths, batch, library)


def classify_on_gpu(
    bundle: Bundle,
    run: Network,
    device: torch.device,
    paths: list[Path],
    batch: int,
    library: DecoderLibrary | None = None,
) -> npt.NDArray[np.int64]:
    """Return the likeliest leaf of each photo, decoded as Triton's GPU model decodes it.

    Raises:
        SystemExit: a photo is not one that the card takes.
    """
    side = bundle.info.preprocessing.input_px
    of_thread = threading.local()

    def answered(some: Sequence[Path]) -> npt.NDArray[np.int64]:
        if not hasattr(of_thread, "decoder"):
            of_thread.decoder = DeviceDecoder(device, library)
            of_thread.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        files = [path.read_bytes() for path in some]
        crops = [find_plain_crop(data, at_least_px=side) for data in files]
        joined = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
        with torch.cuda.stream(of_thread.stream):
            pixels, refused = of_thread.decoder.decode_crops(joined, crops, _NONE, photo_px=side)
            if refused or None in crops:
                raise SystemExit("a photo of the benchmark is not a plain JPEG that the card decodes")
            leaves: npt.NDArray[np.int64] = run(pixels)[0].argmax(dim=1).cpu().numpy()
        return leaves

    with ThreadPoolExecutor(GPU_THREADS) as pool:
        return np.concatenate(list(pool.map(answered, [paths[at : at + batch] for at in range(0, len(paths), batch)])))
