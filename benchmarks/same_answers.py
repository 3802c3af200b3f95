"""Compare what the gateway and a backfill answer with what an earlier commit's answer, for the same listings.

    python -m benchmarks.same_answers [--before COMMIT_OR_CHECKOUT] [--num-listings 1000]

Listings of one to three drawn photos go through the gateway with its Triton, over gRPC and one at a time, and through
`backfill run`, by the code of this checkout and of the earlier one (7505613, of 2026-11-29, unless another is given).
The earlier code trains, exports and certifies the bundle, since it cannot read today's: calibrations have new keys.

Logits are compared as far as responses show them: those of the likeliest leaves, from their probabilities, up to a
constant a listing. A brand that is undetermined in one of two answers is compared no further: 7505613 named the
likeliest brand however unlikely it was. Exits 1 where an action differs.
"""

import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet

from benchmarks.common import BUILD, ROOT, create_parser, describe_commit, run_cli, write_result
from benchmarks.serving import serve_gateway
from listing_vision_client import ListingVisionClient
from listing_vision_client.enums import Action
from listing_vision_client.results import ListingSuggestion
from training.data.synthetic import create_synthetic_dataset
from vision.bundle import load_bundle
from vision.manifest import Manifest

__all__ = ["Answer", "compare_answers"]

FOLDER = BUILD / "same_answers"
EARLIER_COMMIT = "7505613"
UNDETERMINED = "undetermined"
NUM_LEAVES = 20
"""The most alternatives that a gateway returns."""
ALPHA_BRAND = 0.2
"""Weak: drawn brands are hard, and some of them are to be filled."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one server says of one listing."""

    path: tuple[str, ...]
    brand: tuple[str, str]
    """Kind, lower case, and id; the kind is empty where the model knows no brands."""
    filled: tuple[str, bool]
    """Id of the deepest category that is filled, or none, and whether the brand is."""
    path_probabilities: tuple[float, ...]
    brand_probability: float
    leaves: Mapping[str, float]
    """Probability of the likeliest leaves, by id."""
    embedding: npt.NDArray[np.float32]
    """(D,) mean of the photos."""

    @classmethod
    def from_gateway(cls, said: ListingSuggestion) -> "Answer":
        filled = [step.category_id for step in said.category_path if step.action is Action.PREFILL]
        brand = said.brand
        return cls(
            path=tuple(step.category_id for step in said.category_path),
            brand=(brand.kind.name.lower(), brand.brand_id) if brand else ("", ""),
            filled=(filled[-1] if filled else "", brand is not None and brand.action is Action.PREFILL),
            path_probabilities=tuple(step.probability for step in said.category_path),
            brand_probability=(brand and brand.probability) or 0.0,
            leaves={one.category_id: one.probability for one in said.category_alternatives},
            embedding=np.array(said.embedding, np.float32),
        )

    @classmethod
    def from_backfill(cls, row: Mapping[str, Any]) -> "Answer":
        brand = row["brand"] or {"kind": "", "id": "", "probability": 0.0, "filled": False}
        return cls(
            path=tuple(step["id"] for step in row["category_path"]),
            brand=(brand["kind"], brand["id"] or ""),
            filled=(row["filled_category_id"] or "", brand["filled"]),
            path_probabilities=tuple(step["probability"] for step in row["category_path"]),
            brand_probability=brand["probability"] or 0.0,
            leaves={one["id"]: one["probability"] for one in row["alternatives"]},
            embedding=np.array(row["embedding"], np.float32),
        )


def compare_answers(now: Mapping[str, Answer], before: Mapping[str, Answer], *, temperature: float) -> dict[str, float]:
    """Return how many listings have other actions, categories or brands, and the largest differences.

    Args:
        now, before: by listing.
        temperature: what logits of categories are divided by.
    """
    if now.keys() != before.keys():
        raise SystemExit(f"not every listing was answered by both: {sorted(now.keys() ^ before.keys())[:5]}")
    pairs = [(now[listing], before[listing]) for listing in now]
    same_path = [(one, other) for one, other in pairs if one.path == other.path]
    brands = [(one, other) for one, other in pairs if UNDETERMINED not in (one.brand[0], other.brand[0])]
    same_brand = [(one, other) for one, other in brands if one.brand == other.brand]
    return {
        "changed_actions": sum(one.filled != other.filled for one, other in pairs),
        "changed_categories": len(pairs) - len(same_path),
        "changed_brands": len(brands) - len(same_brand),
        "max_category_probability_difference": max(
            abs(p - q)
            for one, other in same_path
            for p, q in zip(one.path_probabilities, other.path_probabilities, strict=True)
        ),
        "max_brand_probability_difference": max(
            abs(one.brand_probability - other.brand_probability) for one, other in same_brand
        ),
        "max_logit_difference": temperature * max(_compare_leaves(one, other) for one, other in pairs),
        "max_embedding_difference": max(float(np.abs(a.embedding - b.embedding).max()) for a, b in pairs),
    }


def _compare_leaves(one: Answer, other: Answer) -> float:
    """Return the largest difference of log probabilities, less the mean difference."""
    common = [leaf for leaf in one.leaves.keys() & other.leaves.keys() if one.leaves[leaf] and other.leaves[leaf]]
    differences = [math.log(one.leaves[leaf] / other.leaves[leaf]) for leaf in common]
    return max(abs(difference - statistics.fmean(differences)) for difference in differences)


def check_out(before: str) -> Path:
    """Return a working tree: the given one, or a new one of the given commit."""
    if Path(before).is_dir():
        return Path(before).resolve()
    folder = BUILD / "checkouts" / before
    if not folder.exists():
        subprocess.run(["git", "worktree", "add", "--detach", str(folder), before], check=True, cwd=ROOT)
    return folder


def create_certified_bundle(checkout: Path) -> Path:
    """Train, export and certify a model with a checkout's code."""
    here = FOLDER / describe_commit(checkout)
    if not (here / "certified").exists():
        manifest = here / "data" / "manifest.parquet"
        run_cli("data", "synthesize", "--output", here / "data", checkout=checkout)
        run_cli("train", manifest, "--recipe", "quick", "--run", here / "run", checkout=checkout)
        run_cli("export", here / "run", "--output", here / "bundle", checkout=checkout)
        alpha = ("--alpha-brand", ALPHA_BRAND)
        run_cli("calibrate", here / "bundle", manifest, "--output", here / "certified", *alpha, checkout=checkout)
    return here / "certified"


def draw_listings(num_listings: int) -> Path:
    """Return the manifest of listings with one to three photos."""
    folder = FOLDER / f"listings-{num_listings}"
    path = folder / "manifest.parquet"
    if not path.exists():
        manifest, _ = create_synthetic_dataset(folder, listings={"test": num_listings}, seed=1)
        manifest.save(str(path))
    return path


def ask_gateway(address: str, manifest: Manifest) -> dict[str, Answer]:
    """Return the answers by listing; one call at a time, so that a batch holds the photos of one listing."""
    photos: dict[str, list[Path]] = {}
    for row, listing in enumerate(manifest.column("listing_id").to_pylist()):
        photos.setdefault(listing, []).append(Path(manifest.get_photo_url(row)))
    with ListingVisionClient(address) as client:
        return {
            listing: Answer.from_gateway(
                client.classify(
                    [path.read_bytes() for path in paths],
                    listing_id=listing,
                    num_alternatives=NUM_LEAVES,
                    include_embedding=True,
                )
            )
            for listing, paths in photos.items()
        }


def run_backfill(bundle: Path, manifest: Path, output: Path, checkout: Path) -> dict[str, Answer]:
    options = ("--model", bundle, "--output", output, "--overwrite", "--top-k", NUM_LEAVES, "--embedding")
    run_cli("backfill", "run", manifest, *options, checkout=checkout)
    rows = pyarrow.parquet.read_table(output / "suggestions").to_pylist()
    return {row["listing_id"]: Answer.from_backfill(row) for row in rows}


def count_filled(answers: Sequence[Answer]) -> dict[str, float]:
    categories, brands = zip(*(answer.filled for answer in answers), strict=True)
    return {"filled_categories": sum(map(bool, categories)), "filled_brands": sum(brands)}


def main() -> None:
    parser = create_parser(__doc__, num_listings=1000)
    parser.add_argument("--before", default=EARLIER_COMMIT, help="commit, or a working tree of it, to compare with")
    options = parser.parse_args()
    checkouts = {"now": ROOT, "before": check_out(options.before)}
    bundle, path = create_certified_bundle(checkouts["before"]), draw_listings(options.num_listings)
    manifest = Manifest.load(str(path))
    gateway, backfill = {}, {}
    for name, checkout in checkouts.items():
        with serve_gateway(bundle, checkout=checkout) as (address, _):
            gateway[name] = ask_gateway(address, manifest)
        backfill[name] = run_backfill(bundle, path, FOLDER / f"backfill-{name}", checkout)
    temperature = load_bundle(bundle).calibration.category_temperature
    metrics: dict[str, float] = {"listings": options.num_listings, **count_filled([*gateway["now"].values()])}
    for what, answers in (("gateway", gateway), ("backfill", backfill)):
        found = compare_answers(answers["now"], answers["before"], temperature=temperature)
        metrics |= {f"{what}_{name}": value for name, value in found.items()}
    details = {"photos": len(manifest), "before": describe_commit(checkouts["before"])}
    write_result("same_answers", metrics, details)
    sys.exit(any(metrics[f"{what}_changed_actions"] for what in ("gateway", "backfill")))


if __name__ == "__main__":
    main()
