"""Measure how large JPEGs should be decoded before they are resized to the model's input.

    python -m benchmarks.jpeg_scale --model RUN_OR_BUNDLE --manifest MANIFEST [--input-px 240] [--draws 2]

A JPEG decodes to a half, a quarter or an eighth of its sides in a fraction of the time, but not quite to the pixels
that the whole photo has after resizing. Photos of the val split, enlarged 1 to 4.5 times in each of `--draws` draws,
are decoded to at least 1, 1.5 and 2 times the input and resized, and compared with the whole photo resized. Time is
that of 1440x1080 photos, in turns.
"""

import io
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.common import create_parser, write_result
from benchmarks.load import create_phone_photos
from training.inference.features import load_embedder
from training.inference.forward import torch_forward
from vision.images import decode_photo
from vision.manifest import Manifest
from vision.photo_files import read_photo
from vision.taxonomy import Taxonomy

FACTORS = (1.0, 1.5, 2.0)
WHOLE = 1000.0
LARGEST = 4.5
"""Grocery Store's photos of 348 px then have the sides of a phone's, 1566 px."""
BATCH = 32
Photos = npt.NDArray[np.uint8]


def prepare(data: bytes, side: int, factor: float) -> Photos:
    decoded = Image.fromarray(decode_photo(data, at_least_px=int(side * factor)))
    return np.array(decoded.resize((side, side), Image.Resampling.BICUBIC))


def enlarge(data: bytes, scale: float) -> bytes:
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    out = io.BytesIO()
    sides = (round(photo.width * scale), round(photo.height * scale))
    photo.resize(sides, Image.Resampling.LANCZOS).save(out, "JPEG", quality=88)
    return out.getvalue()


def iterate_batches(manifest: Manifest, side: int, seed: int) -> Iterator[dict[float, Photos]]:
    """By factor, (N, S, S, 3) uint8."""
    rng = np.random.default_rng(seed)
    for begin in range(0, len(manifest), BATCH):
        files = [
            enlarge(read_photo(manifest.get_photo_url(row)), LARGEST ** rng.random())
            for row in range(begin, min(begin + BATCH, len(manifest)))
        ]
        yield {factor: np.stack([prepare(data, side, factor) for data in files]) for factor in (*FACTORS, WHOLE)}


def measure_answers(model: Path, manifest: Manifest, side: int, num_draws: int) -> dict[str, float]:
    embedder, _ = load_embedder(model)
    infer = torch_forward(embedder)
    taxonomy = Taxonomy.load(model / "taxonomy.json")
    nodes = manifest.resolve_labels(taxonomy).category_nodes
    differences: dict[float, list[float]] = {factor: [] for factor in FACTORS}
    answers: dict[float, list[int]] = {factor: [] for factor in (*FACTORS, WHOLE)}
    for seed in range(num_draws):
        for batch in iterate_batches(manifest, side, seed):
            for factor, photos in batch.items():
                answers[factor] += infer(photos).category.argmax(axis=1).tolist()
            for factor in FACTORS:
                differences[factor].append(float(np.abs(batch[factor].astype(int) - batch[WHOLE]).mean()))
    whole = np.array(answers[WHOLE])
    labels = np.tile(nodes, num_draws)
    is_right = taxonomy.leaves_below
    metrics = {"num_photos": float(len(whole)), "top1_whole": float(is_right[labels, whole].mean())}
    for factor in FACTORS:
        name = f"{factor:g}".replace(".", "_")
        answered = np.array(answers[factor])
        metrics[f"difference_{name}"] = statistics.mean(differences[factor])
        metrics[f"changed_share_{name}"] = float((answered != whole).mean())
        metrics[f"top1_{name}"] = float(is_right[labels, answered].mean())
    return metrics


def measure_time(side: int, rounds: int) -> dict[str, float]:
    photos = create_phone_photos()
    seconds: dict[float, list[float]] = {factor: [] for factor in FACTORS}
    for _ in range(rounds):
        for data in photos:
            for factor in FACTORS:
                began = time.process_time()
                prepare(data, side, factor)
                seconds[factor].append(time.process_time() - began)
    medians = {factor: statistics.median(values) for factor, values in seconds.items()}
    return {f"time_ratio_{factor:g}".replace(".", "_"): medians[factor] / medians[1.0] for factor in FACTORS[1:]}


def main() -> None:
    options = create_parser(__doc__, model=None, manifest=None, input_px=240, draws=2, rounds=5).parse_args()
    torch.set_num_threads(1)
    manifest = Manifest.load(str(options.manifest)).select_split("val")
    metrics = measure_answers(options.model, manifest, options.input_px, options.draws)
    metrics |= measure_time(options.input_px, options.rounds)
    details = {"split": "val", "model": options.model.name, "input_px": options.input_px, "draws": options.draws}
    write_result("jpeg_scale", metrics, details)


if __name__ == "__main__":
    main()
