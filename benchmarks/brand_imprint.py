"""Compare brands imprinted from five photos with brands that were trained, on the val split of Grocery Store.

    python -m benchmarks.brand_imprint [--recipe linear_probe] [--epochs 6 --photo-px 112] [--draws 5]

Three brands are removed from the training labels; their photos stay, with unknown brand. Each brand is then imprinted
from five of its training photos, drawn `--draws` times. The same recipe with all brands, cosine and linear head, is the
baseline. The default is a linear probe (minutes); `--recipe grocery` fine-tunes at the short settings of
`benchmarks.grocery_ablation`. The weight of an imprinted brand (`training.export.add_brand`) was chosen on this split;
the test split is not used.
"""

import dataclasses
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import BUILD, create_parser, find_grocery_source, run_cli, write_result
from training.export.add_brand import extend_taxonomy, imprint_brand
from training.inference.features import extract_features
from training.recipe import Recipe, Stage, load_recipe
from training.run import Run
from training.trainer.training_loop import TrainingLoop
from vision.bundle import BrandHead
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.model import ListingClassifier
from vision.taxonomy import Taxonomy

FOLDER = BUILD / "brand_imprint"
HELD_OUT = ("God Morgon", "Oatly", "Yoggi")
"""Brands with at least ten photos each on val."""
NUM_PHOTOS = 5

Ints = npt.NDArray[np.int64]


def create_recipe(name: str, brand_head: BrandHead, *, epochs: int, photo_px: int) -> Recipe:
    recipe = replace(load_recipe(name), brand_head=brand_head)
    if name == "linear_probe":
        return recipe
    stages = (Stage(photo_px=photo_px, epochs=1, trains="heads"), Stage(photo_px=photo_px, epochs=epochs - 1))
    return replace(recipe, stages=stages, input_px=round(photo_px * 1.14 / 16) * 16)


def exclude_brands(manifest: Manifest, taxonomy: Taxonomy) -> tuple[Manifest, Taxonomy]:
    rows = manifest.table.to_pylist()
    kept = [{**row, "brand": "" if row["brand"] in HELD_OUT else row["brand"]} for row in rows]
    brands = tuple(brand for brand in taxonomy.brands if brand.name not in HELD_OUT)
    return Manifest.from_rows(kept, manifest.base_url), replace(taxonomy, version="held-out", brands=brands)


def train_model(recipe: Recipe, manifest: Manifest, taxonomy: Taxonomy, name: str) -> ListingClassifier:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    TrainingLoop(
        recipe, manifest_url=str(FOLDER / "data" / "manifest.parquet"), manifest=manifest, taxonomy=taxonomy,
        run=Run(folder),
    ).run()  # fmt: skip
    return Run(folder).load_model()


@torch.inference_mode()
def predict_brands(model: ListingClassifier, embeddings: torch.Tensor, taxonomy: Taxonomy) -> list[str]:
    labels = model.apply_heads(embeddings).brand_logits.argmax(dim=1)
    return [taxonomy.brand_labels[label] for label in labels.tolist()]


def compute_accuracy(answers: list[str], truth: list[str], no_brand: str) -> dict[str, float]:
    """Return top-1 of the held-out brands, of the other brands, and of products without a brand."""

    def right(wanted: list[bool]) -> float:
        return statistics.mean(a == t for a, t, w in zip(answers, truth, wanted, strict=True) if w)

    held = [name in HELD_OUT for name in truth]
    return {
        "held_out": right(held),
        "others": right([not h for h in held]),
        "other_brands": right([not h and name != no_brand for h, name in zip(held, truth, strict=True)]),
        "unbranded": right([name == no_brand for name in truth]),
    }


def imprint_brands(
    model: ListingClassifier, taxonomy: Taxonomy, embeddings: torch.Tensor, brands: list[str], *, draw: int
) -> tuple[ListingClassifier, Taxonomy]:
    rng = np.random.default_rng(draw)
    for name in HELD_OUT:
        rows = rng.choice([row for row, brand in enumerate(brands) if brand == name], NUM_PHOTOS, replace=False)
        model, taxonomy = imprint_brand(model, embeddings[rows]), extend_taxonomy(taxonomy, name)
    return model, taxonomy


def compute_embeddings(model: ListingClassifier, rows: Manifest, recipe: Recipe) -> tuple[torch.Tensor, list[str]]:
    found = extract_features(model, rows, Preprocessing(input_px=recipe.input_px), cache=FOLDER / "features")
    brands = rows.column("brand").to_pylist()
    return torch.from_numpy(found.values.copy()), [brands[row] for row in found.rows]


def main() -> None:
    parser = create_parser(__doc__, epochs=6, photo_px=112, draws=5)
    parser.add_argument("--recipe", choices=("linear_probe", "grocery"), default="linear_probe")
    asked = parser.parse_args()
    run_cli("data", "import", "grocery-store", find_grocery_source(), "--output", FOLDER / "data")
    whole = Manifest.load(str(FOLDER / "data" / "manifest.parquet"))
    taxonomy = Taxonomy.load(Path(FOLDER / "data" / "taxonomy.json"))
    figures: dict[str, dict[str, float]] = {}
    heads: tuple[BrandHead, ...] = ("linear", "cosine")
    for head in heads:
        recipe = create_recipe(asked.recipe, head, epochs=asked.epochs, photo_px=asked.photo_px)
        model = train_model(recipe, whole, taxonomy, f"{asked.recipe}-{head}-all")
        values, truth = compute_embeddings(model, whole.select_split("val"), recipe)
        figures[f"trained_{head}"] = compute_accuracy(predict_brands(model, values, taxonomy), truth, taxonomy.no_brand)
    fewer, smaller = exclude_brands(whole, taxonomy)
    model = train_model(recipe, fewer, smaller, f"{asked.recipe}-cosine-held-out")
    values, truth = compute_embeddings(model, whole.select_split("val"), recipe)
    figures["before_imprint"] = compute_accuracy(predict_brands(model, values, smaller), truth, taxonomy.no_brand)
    from_values, from_brands = compute_embeddings(model, whole.select_split("train"), recipe)
    draws = []
    for draw in range(asked.draws):
        larger, known = imprint_brands(model, smaller, from_values, from_brands, draw=draw)
        draws.append(compute_accuracy(predict_brands(larger, values, known), truth, taxonomy.no_brand))
    figures["imprinted"] = {key: statistics.mean(d[key] for d in draws) for key in draws[0]}
    metrics = {f"{name}_{key}": value for name, part in figures.items() for key, value in part.items()}
    write_result(
        "brand_imprint",
        metrics,
        {"setting": vars(asked), "split": "val, 296 photos", "held_out": HELD_OUT, "recipe": dataclasses.asdict(recipe),
         "draws": draws},
    )  # fmt: skip


if __name__ == "__main__":
    main()
