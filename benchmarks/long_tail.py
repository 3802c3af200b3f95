"""Compare what recipes offer for classes of unequal size: drawn photos of 1,000 leaves at 100:1.

    python -m benchmarks.long_tail [--seeds 0 1 2] [--leaves 1000] [--most 100] [--least 1] [--epochs 10]

A leaf is a shape, a colour and a mark. The most frequent has `--most` training photos and the rarest `--least`, the
others fall exponentially between them (Cui et al., CVPR 2019, section 5.1); a seed draws other photos, other leaves as
the rare ones, and other weights. Heads are trained on frozen ImageNet features (`linear_probe`), as long as val
improves. Nothing was chosen on the test split, which has ten photos of each leaf. Interrupted, the command resumes.

Two ways to score: as an exported model does, with the class frequencies of the training photos restored where training
removed them, and balanced, where every leaf is as likely as the others.
"""

import colorsys
import dataclasses
import io
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from benchmarks.common import BUILD, create_parser, write_result
from training.data.importers import build_brands, build_taxonomy, save_dataset
from training.data.synthetic import PRODUCTS
from training.export.export import compute_log_priors
from training.inference.features import extract_features
from training.recipe import Recipe, Stage, load_recipe
from training.run import Run
from training.trainer.losses import compute_log_class_shares
from training.trainer.training_loop import TrainingLoop
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

FOLDER = BUILD / "long_tail"
PHOTO_PX = 96
NUM_COLOURS = NUM_MARKS = 10
NUM_TEST_PHOTOS = 10
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "balanced_sampling = 0.5": {"balanced_sampling": 0.5},
    "logit_adjustment": {"long_tail": "logit_adjustment"},
    "logit_adjustment, balanced_sampling = 0.5": {"long_tail": "logit_adjustment", "balanced_sampling": 0.5},
}
"""With balanced_sampling = 1, the sampled classes would be equally frequent and logit adjustment change nothing."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def describe_leaf(leaf: int) -> tuple[str, str, str]:
    shape, colour, mark = leaf // (NUM_COLOURS * NUM_MARKS), leaf // NUM_MARKS % NUM_COLOURS, leaf % NUM_MARKS
    return PRODUCTS[shape].path[-1], f"{PRODUCTS[shape].path[-1]} colour {colour}", f"leaf {leaf:03d} mark {mark}"


def draw_product(leaf: int) -> Image.Image:
    """Return an RGBA drawing, 160 px wide, that all photos of a leaf are made of."""
    what = PRODUCTS[leaf // (NUM_COLOURS * NUM_MARKS)]
    hue, mark = leaf // NUM_MARKS % NUM_COLOURS / NUM_COLOURS, leaf % NUM_MARKS
    red, green, blue = (round(204 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 1.0))
    layer = Image.new("RGBA", (480, 480))
    pen = ImageDraw.Draw(layer)
    what.shape(pen, (red, green, blue), (red // 2, green // 2, blue // 2))
    ink = (250, 250, 245) if mark < NUM_MARKS // 2 else (20, 20, 25)
    pen.regular_polygon((*what.mark_at, what.mark_px * 0.9), 3 + mark % (NUM_MARKS // 2), fill=ink)
    return layer.resize((160, 160), Image.Resampling.BOX)


def create_photo(product: Image.Image, rng: np.random.Generator) -> bytes:
    """Return JPEG bytes of `PHOTO_PX`: the product turned, scaled and moved, in another light, on a plain ground."""
    side = int(PHOTO_PX * rng.uniform(0.85, 1.1))
    layer = product.rotate(float(rng.normal(0, 8)), Image.Resampling.BILINEAR).resize((side, side))
    photo = Image.new("RGB", (PHOTO_PX, PHOTO_PX), tuple(int(v) for v in rng.integers(25, 230, 3)))
    left, top = ((PHOTO_PX - side) // 2 + int(rng.normal(0, 4)) for _ in range(2))
    photo.paste(layer, (left, top), layer)
    light = np.asarray(photo) * rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3)
    noisy = (light + rng.normal(0, 6, (PHOTO_PX, PHOTO_PX, 1))).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "JPEG", quality=85)
    return out.getvalue()


def count_photos(num_leaves: int, *, most: int, least: int, rng: np.random.Generator) -> Ints:
    """(num_leaves,) training photos of each leaf, falling exponentially over leaves in a random order."""
    counts = most * (least / most) ** (np.arange(num_leaves) / (num_leaves - 1))
    return rng.permutation(counts.round().astype(np.int64))


def create_dataset(folder: Path, counts: Ints, rng: np.random.Generator) -> None:
    """Draw train, a val of one photo a leaf, which training asks for, and test into a folder, unless they are there."""
    if (folder / "manifest.parquet").is_file():
        return
    (folder / "photos").mkdir(parents=True, exist_ok=True)

    def draw_rows() -> Iterator[dict[str, str]]:
        for leaf, num_train in enumerate(counts.tolist()):
            product = draw_product(leaf)
            for split, number in (("train", num_train), ("val", 1), ("test", NUM_TEST_PHOTOS)):
                for photo in range(number):
                    name = f"{split}-{leaf:03d}-{photo}"
                    (folder / "photos" / f"{name}.jpg").write_bytes(create_photo(product, rng))
                    category = " > ".join(describe_leaf(leaf))
                    yield {"listing_id": name, "photo": f"photos/{name}.jpg", "category": category, "split": split}

    rows = [{**row, "brand": ""} for row in draw_rows()]
    taxonomy = build_taxonomy("drawn-leaves", [describe_leaf(leaf) for leaf in range(len(counts))], build_brands(()))
    save_dataset(Manifest.from_rows(rows, str(folder)), taxonomy, folder)


def score(logits: Floats, truth: Ints, counts: Ints) -> dict[str, float]:
    """Return mean accuracies: of all leaves, of each third from frequent to rare, and weighted by training photos."""
    right = logits.argmax(axis=1) == truth
    per_leaf = np.array([right[truth == leaf].mean() for leaf in range(len(counts))])
    thirds = np.array_split(np.argsort(-counts, kind="stable"), 3)
    return {
        "macro": float(per_leaf.mean()),
        "by_frequency": float(per_leaf @ counts / counts.sum()),
        **{name: float(per_leaf[third].mean()) for name, third in zip(("head", "middle", "tail"), thirds, strict=True)},
    }


def judge_option(recipe: Recipe, manifest: Manifest, taxonomy: Taxonomy, folder: Path) -> dict[str, dict[str, float]]:
    """Train, and return the figures on test by how the logits are scored."""
    if not folder.exists():
        folder.mkdir()
        (folder / "features").symlink_to(folder.parent / "features")  # the same photos and backbone for all options
    url = str(folder.parent / "data" / "manifest.parquet")
    TrainingLoop(recipe, manifest_url=url, manifest=manifest, taxonomy=taxonomy, run=Run(folder)).run()
    model = Run(folder).load_model()
    test = manifest.select_split("test")
    found = extract_features(model, test, Preprocessing(input_px=PHOTO_PX), cache=folder.parent / "features")
    with torch.inference_mode():
        logits = model.apply_heads(torch.from_numpy(found.values.copy())).category_logits.double().numpy()
    train = manifest.select_split("train")
    prior = np.array(compute_log_priors(recipe, train, taxonomy)[0] or [0.0])
    nodes = train.resolve_labels(taxonomy).category_nodes
    natural = compute_log_class_shares(nodes, taxonomy.leaves_below)
    leaf_of_node = {taxonomy.node_index[leaf]: at for at, leaf in enumerate(taxonomy.leaf_ids)}
    truth = np.array([leaf_of_node[node] for node in test.resolve_labels(taxonomy).category_nodes[found.rows]])
    counts = np.bincount([leaf_of_node[node] for node in nodes], minlength=len(taxonomy.leaf_ids))
    as_exported = logits + prior
    return {
        "exported": score(as_exported, truth, counts),
        "balanced": score(as_exported - natural, truth, counts),
    }


def main() -> None:
    parser = create_parser(__doc__, leaves=1000, most=100, least=1, epochs=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    recipe = dataclasses.replace(
        load_recipe("linear_probe"),
        input_px=PHOTO_PX,
        batch_size=256,
        stages=(Stage(photo_px=PHOTO_PX, epochs=asked.epochs, trains="heads_on_features"),),
    )
    runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in OPTIONS}
    num_photos = 0
    for seed in asked.seeds:
        folder = FOLDER / f"{asked.leaves}-{asked.most}-{asked.least}-seed{seed}"
        rng = np.random.default_rng(seed)
        counts = count_photos(asked.leaves, most=asked.most, least=asked.least, rng=rng)
        num_photos = int(counts.sum())
        create_dataset(folder / "data", counts, rng)
        (folder / "features").mkdir(exist_ok=True)
        manifest = Manifest.load(str(folder / "data" / "manifest.parquet"))
        taxonomy = Taxonomy.load(folder / "data" / "taxonomy.json")
        for number, (name, fields) in enumerate(OPTIONS.items()):
            chosen = dataclasses.replace(recipe, seed=seed, **fields)
            found = judge_option(chosen, manifest, taxonomy, folder / f"option{number}")
            runs[name].append(found)
            print(f"{name:42} seed {seed}: {found}", flush=True)
    metrics = {
        f"{name}: {scored}_{figure}": statistics.mean(run[scored][figure] for run in found)
        for name, found in runs.items()
        for scored in ("exported", "balanced")
        for figure in ("macro", "by_frequency", "tail")
    }
    setting = {**vars(asked), "num_training_photos": num_photos, "photo_px": PHOTO_PX, "backbone": recipe.backbone}
    write_result(
        "long_tail",
        {"seeds": float(len(asked.seeds)), **metrics},
        {"setting": setting, "split": f"test, {NUM_TEST_PHOTOS} photos of each leaf", "runs": runs},
    )


if __name__ == "__main__":
    main()
