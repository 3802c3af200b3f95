"""Measure what is filled in for listings that should not be: of other products, and of photos that disagree.

    python -m benchmarks.scope [--grocery-run RUN] [--num-near-draws 5]

Two models, of Grocery Store and of drawn goods, are each shown the other's goods, photos without any product (drawn
by code; nothing was chosen on the plots), pairs of photos of different products, and honest listings of two to five
photos of one category, made of the test split's photos. `scores`: published scores beside ours. `near`: linear probes
on Grocery Store without 15 of its 81 leaves, drawn again for each, are shown these. `sharpened`: the threshold raised
for drawn photos without product, the plots not among them. Ways to fuse photos are compared on val. Every figure
stands beside that of the same calibration without scope and agreement.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.certificate import create_synthetic_manifest, import_grocery, train_model
from benchmarks.common import BUILD, create_parser, run_cli, write_result
from benchmarks.outside_photos import FINAL_KIND, KINDS, draw_outside_photos
from benchmarks.scope_choices import compare_fusions, encode_jpeg, measure_hint
from benchmarks.scope_scores import compute_auroc, compute_auroc_by_score
from training.calibration.scope import sharpen_scope_threshold
from training.inference.predictions import Predictions, predict
from vision.bundle import Bundle, load_bundle
from vision.calibration import Calibration
from vision.decision import compute_prefilled
from vision.engine import Logits, OnnxEngine
from vision.images import prepare_photo
from vision.manifest import OUT_OF_SCOPE_LABEL, Manifest
from vision.prediction.listings import ListingPredictions, predict_listings
from vision.prediction.photo_selection import compute_listing_scope_scores

FOLDER = BUILD / "scope"
NUM_OUTSIDE = 300
NUM_FOREIGN = 600
NUM_MIXED = 2000
NUM_HONEST = 2000
NUM_HELD_OUT_LEAVES = 15
NUM_SHARPENING = 100
HISTOGRAM_RANGE = (-4.0, 1.0)
"""Scores beyond count in the outer bins."""

Ints = npt.NDArray[np.int64]


class Decided(NamedTuple):
    """N listings as one calibration decides about them."""

    predictions: ListingPredictions
    filled: npt.NDArray[np.bool_]
    """(N, D + 1), the brand last."""


class Model:
    """A bundle with its calibration, and the same without scope and agreement."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.engine = bundle, OnnxEngine(bundle)
        gated = bundle.calibration
        self.calibrations: dict[str, Calibration] = {
            "gated": gated,
            "sharpened": gated,
            "without_scope": replace(gated, scope_threshold=None),
            "without_agreement": replace(gated, agreement_limit=None),
            "before": replace(gated, scope_threshold=None, agreement_limit=None),
        }

    def predict(self, manifest: Manifest) -> Predictions:
        return predict(manifest, self.bundle.taxonomy, self.bundle.info.preprocessing, self.engine.infer)

    def sharpen(self, val: Predictions) -> dict[str, Any]:
        """Sharpen a threshold with photos of all kinds but the last, others than those that are judged."""
        photos = [
            prepare_photo(encode_jpeg(photo), self.bundle.info.preprocessing)
            for kind in KINDS
            if kind != FINAL_KIND
            for photo in draw_outside_photos(kind, num_photos=NUM_SHARPENING, seed=1)
        ]
        outside = np.concatenate(
            [self.engine.infer(np.stack(photos[i : i + 64])).scope for i in range(0, len(photos), 64)]
        )
        threshold = self.bundle.calibration.scope_threshold
        assert threshold is not None
        moved = sharpen_scope_threshold(threshold, compute_listing_scores(val), outside)
        self.calibrations["sharpened"] = replace(self.bundle.calibration, scope_threshold=moved.threshold)
        return moved._asdict()

    def decide(self, logits: Logits, groups: Ints, how: str) -> Decided:
        taxonomy, calibration = self.bundle.taxonomy, self.calibrations[how]
        predictions = predict_listings(
            logits.category, logits.brand, logits.scope, groups, taxonomy=taxonomy, calibration=calibration
        )
        return Decided(predictions, compute_prefilled(predictions, taxonomy=taxonomy, calibration=calibration))


def get_logits(predictions: Predictions, photos: Ints | None = None) -> Logits:
    rows = slice(None) if photos is None else photos
    return Logits(
        predictions.category_logits[rows],
        predictions.brand_logits[rows],
        np.empty((0, 0), np.float32),
        predictions.scope_scores[rows],
    )


def compute_listing_scores(predictions: Predictions) -> npt.NDArray[np.floating]:
    return compute_listing_scope_scores(predictions.scope_scores, predictions.groups)


def build_score_histogram(scores: npt.NDArray[np.floating]) -> list[int]:
    """Return how many scores lie in each of fifty bins of `HISTOGRAM_RANGE`."""
    return [int(count) for count in np.histogram(scores.clip(*HISTOGRAM_RANGE), bins=50, range=HISTOGRAM_RANGE)[0]]


def label_as_outside(photo_urls: list[str]) -> Manifest:
    rows = [{"listing_id": str(i), "photo": url, "category": OUT_OF_SCOPE_LABEL} for i, url in enumerate(photo_urls)]
    return Manifest.from_rows(rows, "")


def write_outside_photos(kind: str) -> Manifest:
    """Draw the photos of a kind into files; return a manifest of them."""
    folder = FOLDER / "outside" / kind
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(draw_outside_photos(kind, num_photos=NUM_OUTSIDE)):
        Image.fromarray(photo).save(folder / f"{number:04d}.jpg", quality=88)
    return label_as_outside([str(path) for path in sorted(folder.iterdir())])


def take_foreign_photos(manifest: Manifest, split: str) -> Manifest:
    """Return the first photo of listings, drawn at random, as listings that another taxonomy does not cover."""
    rows = manifest.select_split(split)
    _, first = np.unique(rows.number_listings(), return_index=True)
    chosen = np.random.default_rng(0).permutation(first)[:NUM_FOREIGN]
    return label_as_outside([rows.get_photo_url(int(row)) for row in chosen])


def measure_outside(model: Model, inside: Predictions, outside: dict[str, Manifest]) -> dict[str, Any]:
    inside_scores = compute_listing_scores(inside)
    found: dict[str, Any] = {}
    for kind, manifest in outside.items():
        predictions = model.predict(manifest)
        shares = {
            how: float(model.decide(get_logits(predictions), predictions.groups, how).filled.any(axis=1).mean())
            for how in ("gated", "sharpened", "before")
        }
        found[kind] = {
            "score_histogram": build_score_histogram(compute_listing_scores(predictions)),
            "listings": len(predictions.listing_ids),
            "auroc": compute_auroc(inside_scores, compute_listing_scores(predictions)),
            "filled_share": shares["gated"],
            "filled_share_sharpened": shares["sharpened"],
            "filled_share_before": shares["before"],
        }
    return found


def measure_inside(model: Model, inside: Predictions) -> dict[str, Any]:
    """Share of good listings for which each field is filled, with scope and without it."""
    gated, sharpened, without = (
        model.decide(get_logits(inside), inside.groups, how).filled.mean(axis=0)
        for how in ("gated", "sharpened", "without_scope")
    )
    return {
        "filled_shares": gated.tolist(),
        "filled_shares_sharpened": sharpened.tolist(),
        "filled_shares_without_scope": without.tolist(),
        "score_histogram": build_score_histogram(compute_listing_scores(inside)),
    }


def find_leaf_photos(predictions: Predictions, leaf_nodes: Ints) -> Iterator[Ints]:
    """Yield the photos of each leaf category that has at least two."""
    nodes = predictions.labels.category_nodes
    for leaf in leaf_nodes:
        photos = np.flatnonzero(nodes == leaf)
        if len(photos) > 1:
            yield photos


def measure_mixed(model: Model, predictions: Predictions) -> dict[str, Any]:
    """Fill in pairs of photos of different leaves, and of different roots: no one answer is right."""
    taxonomy, rng = model.bundle.taxonomy, np.random.default_rng(1)
    leaf_index = {taxonomy.node_index[leaf]: i for i, leaf in enumerate(taxonomy.leaf_ids)}
    labelled = np.flatnonzero([node in leaf_index for node in predictions.labels.category_nodes.tolist()])
    leaves = np.array([leaf_index[node] for node in predictions.labels.category_nodes[labelled].tolist()])
    roots = taxonomy.leaf_paths[leaves, 0]
    pairs = rng.integers(0, len(labelled), (40 * NUM_MIXED, 2))
    differ = {
        "leaf": leaves[pairs[:, 0]] != leaves[pairs[:, 1]],
        "root": roots[pairs[:, 0]] != roots[pairs[:, 1]],
    }
    found: dict[str, Any] = {}
    for name, wanted in differ.items():
        chosen = pairs[wanted][:NUM_MIXED]
        groups = np.repeat(np.arange(len(chosen)), 2)
        for how in ("gated", "before"):
            decided = model.decide(get_logits(predictions, labelled[chosen.ravel()]), groups, how)
            found[f"{name}_filled_share{'' if how == 'gated' else '_before'}"] = float(
                (find_leaf_filled(decided) if name == "leaf" else decided.filled[:, :-1].any(axis=1)).mean()
            )
        found[f"{name}_pairs"] = len(chosen)
    return found


def find_leaf_filled(decided: Decided) -> npt.NDArray[np.bool_]:
    """(N,) whether the likeliest leaf itself is filled."""
    depths = (decided.predictions.paths.nodes >= 0).sum(axis=1)
    filled: npt.NDArray[np.bool_] = decided.filled[np.arange(len(depths)), depths - 1]
    return filled


def measure_honest(model: Model, predictions: Predictions) -> dict[str, Any]:
    """Listings of two to five photos of one leaf, with agreement, without it, and without scope either."""
    taxonomy, rng = model.bundle.taxonomy, np.random.default_rng(2)
    leaf_nodes = np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])
    by_leaf = list(find_leaf_photos(predictions, leaf_nodes))
    listings = []
    for number in range(NUM_HONEST):
        photos = by_leaf[number % len(by_leaf)]
        listings.append(rng.permutation(photos)[: int(rng.integers(2, 6))])
    groups = np.repeat(np.arange(NUM_HONEST), [len(photos) for photos in listings])
    truth = np.array([predictions.labels.category_nodes[photos[0]] for photos in listings])
    found: dict[str, Any] = {"listings": NUM_HONEST}
    for how, suffix in (("gated", ""), ("without_agreement", "_without_agreement"), ("before", "_before")):
        decided = model.decide(get_logits(predictions, np.concatenate(listings)), groups, how)
        depths = (decided.predictions.paths.nodes >= 0).sum(axis=1)
        answers = decided.predictions.paths.nodes[np.arange(NUM_HONEST), depths - 1]
        found[f"accuracy{suffix}"] = float((answers == truth).mean())
        found[f"filled_shares{suffix}"] = decided.filled[:, :-1].mean(axis=0).tolist()
        found[f"leaf_filled_share{suffix}"] = float(find_leaf_filled(decided).mean())
    return found


def measure_model(bundle: Bundle, manifest: Manifest, foreign: Manifest) -> dict[str, Any]:
    model = Model(bundle)
    test, val = (model.predict(manifest.select_split(split)) for split in ("test", "val"))
    sharpened = model.sharpen(val)
    outside = {"other goods": foreign, **{kind: write_outside_photos(kind) for kind in KINDS}}
    return {
        "model_version": bundle.info.model_version,
        "scope_threshold": bundle.calibration.scope_threshold,
        "agreement_limit": bundle.calibration.agreement_limit,
        "sharpened": sharpened,
        "fusions": compare_fusions(val, bundle.taxonomy),
        "hint": measure_hint(test, bundle),
        "scores": compute_auroc_by_score(
            bundle, manifest.select_split("train"), manifest.select_split("test"), outside
        ),
        "outside": measure_outside(model, test, outside),
        "inside": measure_inside(model, test),
        "mixed": measure_mixed(model, test),
        "honest": measure_honest(model, test),
    }


def drop_leaves(taxonomy: dict[str, Any], leaves: set[str]) -> dict[str, Any]:
    """Return the taxonomy without these leaves and without inner nodes that have no child left."""
    kept = [category for category in taxonomy["categories"] if category["id"] not in leaves]
    had_children = {category["parent_id"] for category in taxonomy["categories"]}
    while True:
        parents = {category["parent_id"] for category in kept}
        alive = [one for one in kept if one["id"] in parents or one["id"] not in had_children]
        if len(alive) == len(kept):
            return taxonomy | {"categories": kept}
        kept = alive


def measure_near(grocery: Path, draw: int) -> dict[str, Any]:
    """A probe that has not seen some leaves, shown photos of these from the train and val splits."""
    folder = FOLDER / f"near-{draw}"
    folder.mkdir(parents=True, exist_ok=True)
    whole = json.loads((grocery.parent / "taxonomy.json").read_text())
    inner = {category["parent_id"] for category in whole["categories"]}
    leaf_ids = sorted(category["id"] for category in whole["categories"] if category["id"] not in inner)
    held_out = set(np.random.default_rng(draw).permutation(leaf_ids)[:NUM_HELD_OUT_LEAVES].tolist())
    manifest = Manifest.load(str(grocery))
    ids_by_name = {" > ".join(path): leaf for leaf, path in list_leaf_paths(whole).items()}
    categories = [ids_by_name.get(name, name) for name in manifest.column("category").to_pylist()]
    is_held_out = np.array([category in held_out for category in categories])
    is_seen = np.isin(manifest.column("split").to_pylist(), ("train", "val"))
    taxonomy = drop_leaves(whole, held_out)
    (folder / "taxonomy.json").write_text(json.dumps(taxonomy))
    manifest.rebase(str(folder)).take(np.flatnonzero(~is_held_out)).save(str(folder / "manifest.parquet"))
    if not (folder / "bundle").is_dir():
        run_cli("train", folder / "manifest.parquet", "--recipe", "linear_probe", "--run", folder / "run")
        run_cli("export", folder / "run", "--output", folder / "bundle", "--name", "near")
    model = Model(load_bundle(folder / "bundle"))
    rows = np.flatnonzero(is_held_out & is_seen)
    shown = model.predict(label_as_outside([manifest.get_photo_url(int(row)) for row in rows]))
    inside = model.predict(Manifest.load(str(folder / "manifest.parquet")).select_split("val"))
    found: dict[str, Any] = {
        "held_out": sorted(held_out),
        "listings": len(rows),
        "auroc": compute_auroc(compute_listing_scores(inside), compute_listing_scores(shown)),
    }
    for how, suffix in (("gated", ""), ("before", "_before")):
        decided = model.decide(get_logits(shown), shown.groups, how)
        found[f"leaf_filled_share{suffix}"] = float(find_leaf_filled(decided).mean())
        found[f"any_filled_share{suffix}"] = float(decided.filled[:, :-1].any(axis=1).mean())
    return found


def list_leaf_paths(taxonomy: dict[str, Any]) -> dict[str, list[str]]:
    """Return the English names from the root down of each category by id."""
    by_id = {category["id"]: category for category in taxonomy["categories"]}
    paths = {}
    for identifier in by_id:
        names, at = [], identifier
        while at is not None:
            names.append(by_id[at]["names"]["en"])
            at = by_id[at]["parent_id"]
        paths[identifier] = names[::-1]
    return paths


def select_metrics(models: dict[str, Any], near: list[dict[str, Any]]) -> dict[str, float]:
    """The worst of both models and all kinds; the mean of the near draws."""
    kinds = [kind for found in models.values() for kind in found["outside"].values()]

    def find_losses(suffix: str) -> list[float]:
        return [
            without - gated
            for inside in (found["inside"] for found in models.values())
            for gated, without in zip(
                inside[f"filled_shares{suffix}"], inside["filled_shares_without_scope"], strict=True
            )
        ]

    honest = [found["honest"] for found in models.values()]
    honest_losses = [
        without - gated
        for one in honest
        for gated, without in zip(one["filled_shares"], one["filled_shares_without_agreement"], strict=True)
    ]
    metrics = {
        "far_filled_share": max(kind["filled_share"] for kind in kinds),
        "far_filled_share_before": max(kind["filled_share_before"] for kind in kinds),
        "far_auroc": min(kind["auroc"] for kind in kinds),
        "in_scope_coverage_loss": max(find_losses("")),
        "far_filled_share_sharpened": max(kind["filled_share_sharpened"] for kind in kinds),
        "in_scope_coverage_loss_sharpened": max(find_losses("_sharpened")),
        "hint_leaf_accuracy_gain": min(found["hint"]["gain"] for found in models.values()),
        "honest_coverage_loss": max(honest_losses),
        "honest_accuracy_gain": min(one["accuracy"] - one["accuracy_before"] for one in honest),
    }
    for name, suffix in itertools.product(("leaf", "root"), ("", "_before")):
        shares = [found["mixed"][f"{name}_filled_share{suffix}"] for found in models.values()]
        metrics[f"mixed_{name}_filled_share{suffix}"] = max(shares)
    for suffix in ("", "_before") if near else ():
        metrics[f"near_leaf_filled_share{suffix}"] = float(np.mean([one[f"leaf_filled_share{suffix}"] for one in near]))
    return metrics


def main() -> None:
    parser = create_parser(__doc__, num_near_draws=5)
    parser.add_argument("--grocery-run", type=Path, help="a finished run, such as that of grocery_accuracy")
    options = parser.parse_args()
    paths = {"grocery": import_grocery(), "drawn": create_synthetic_manifest()}
    bundles = {
        "grocery": train_model("grocery", paths["grocery"], options.grocery_run),
        "drawn": train_model("drawn", paths["drawn"], None),
    }
    manifests = {name: Manifest.load(str(path)) for name, path in paths.items()}
    foreign = {
        "grocery": take_foreign_photos(manifests["drawn"], "val"),
        "drawn": take_foreign_photos(manifests["grocery"], "val"),
    }
    models = {name: measure_model(bundles[name], manifests[name], foreign[name]) for name in bundles}
    near = [measure_near(paths["grocery"], draw) for draw in range(options.num_near_draws)]
    for name, found in models.items():
        for kind, figures in found["outside"].items():
            numbers = {key: value for key, value in figures.items() if key != "score_histogram"}
            print(f"{name} shown {kind}: " + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
        print(f"{name}: {json.dumps({key: found[key] for key in ('inside', 'mixed', 'honest')})}")
    write_result("scope", select_metrics(models, near), {"models": models, "near": near})


if __name__ == "__main__":
    main()
