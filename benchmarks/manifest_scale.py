"""Measure time and memory from a manifest of ten million photos to the epoch of every rank.

    python -m benchmarks.manifest_scale [--rows 10000000]

The manifest of 3.3 million listings is drawn once, in a process of its own, and kept. Another process then does what a
training run does before its first batch: load, labels, the rows of train and val, the digest, and the share of an epoch
of each of 8 ranks. `rss_gib` is the largest resident memory of that process, with interpreter and libraries.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import BUILD, create_parser, write_result

FOLDER = BUILD / "manifest_scale"
RANKS = 8
_CHUNK_LISTINGS = 100_000
_DEPARTMENTS, _KINDS, _LEAVES, _BRANDS = 20, 10, 10, 500


def main() -> None:
    rows: int = create_parser(__doc__, rows=10_000_000).parse_args().rows
    folder = FOLDER / str(rows)
    path = folder / "manifest.parquet"
    if not path.exists():
        _run_in_subprocess(_generate, folder, rows)
    measured = _run_in_subprocess(_measure, folder)
    for step, seconds in measured["seconds"].items():
        print(f"{step:<28} {seconds:8.2f} s   {measured['rss_gib'][step]:6.2f} GiB at most so far")
    metrics = {
        "seconds": sum(measured["seconds"].values()),
        "rss_gib": max(measured["rss_gib"].values()),
        "rows": float(measured["rows"]),
    }
    write_result("manifest_scale", metrics, {**measured, "file_bytes": path.stat().st_size, "ranks": RANKS})


def _run_in_subprocess(function: Callable[..., Any], *arguments: object) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _create_taxonomy() -> Any:
    from vision.taxonomy import Brand, Category, Taxonomy

    categories = []
    for d in range(_DEPARTMENTS):
        categories.append(Category(id=f"d{d}", names={"en": f"Department {d}"}))
        for k in range(_KINDS):
            categories.append(Category(id=f"d{d}k{k}", names={"en": f"Kind {k}"}, parent_id=f"d{d}"))
            for leaf in range(_LEAVES):
                names = {"en": f"Leaf {d}-{k}-{leaf}"}
                categories.append(Category(id=f"d{d}k{k}l{leaf}", names=names, parent_id=f"d{d}k{k}"))
    brands = tuple(Brand(id=f"b{b}", names={"en": f"Brand {b}"}) for b in range(_BRANDS))
    return Taxonomy(version="scale-1", categories=tuple(categories), brands=brands)


def _generate(folder: Path, num_rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet

    from vision.manifest import COLUMNS, open_for_replacement

    def text(numbers: Any, before: str, after: str = "") -> Any:
        return pa.compute.binary_join_element_wise(before, pa.array(numbers).cast(pa.string()), after, "")

    folder.mkdir(parents=True, exist_ok=True)
    taxonomy = _create_taxonomy()
    taxonomy.save(folder / "taxonomy.json")
    paths = [taxonomy.format_path(category.id) for category in taxonomy.categories]
    leaves = np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])
    inner = np.setdiff1d(np.arange(len(paths)), leaves)
    categories = pa.array([*paths, ""])
    brands = pa.array([*taxonomy.brand_labels, ""])
    splits = pa.array(["train", "val", "test"])
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    rng = np.random.default_rng(0)
    written = first_listing = 0
    url = str(folder / "manifest.parquet")
    with open_for_replacement(url) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while written < num_rows:
            # One to six photos, three on average.
            num_photos = rng.choice([1, 2, 3, 4, 5, 6], _CHUNK_LISTINGS, p=[0.2, 0.24, 0.2, 0.16, 0.12, 0.08])
            n = len(num_photos)
            kind = rng.random(n)
            category = np.where(kind < 0.9, rng.choice(leaves, n), rng.choice(inner, n))
            category[kind >= 0.95] = len(paths)
            brand = rng.integers(0, len(brands), n)
            brand[rng.random(n) < 0.2] = len(brands) - 1
            of_photo = np.repeat(np.arange(n), num_photos)[: num_rows - written]
            listing = of_photo + first_listing + 20_000_000
            number = np.arange(len(of_photo)) - np.searchsorted(of_photo, of_photo)
            folders = text(listing % 997, "s3://listing-photos/", "/")
            columns = {
                "listing_id": text(listing, "m"),
                "photo": pa.compute.binary_join_element_wise(
                    folders, text(listing * 7919, "item/detail/orig/m"), text(number, "_", ".jpg"), ""
                ),
                "category": categories.take(pa.array(category[of_photo])),
                "brand": brands.take(pa.array(brand[of_photo])),
                "split": splits.take(pa.array(rng.choice(3, n, p=[0.9, 0.05, 0.05])[of_photo])),
                "seller_id": text(rng.integers(0, 400_000, n)[of_photo], "u"),
                "listed_at": text(
                    pa.array(1_700_000_000 + (first_listing + np.arange(n))[of_photo] * 9, pa.int64()).cast(
                        pa.timestamp("s")
                    ),
                    "",
                    "Z",
                ),
            }
            writer.write_table(pa.table(columns, schema=schema))
            written += len(of_photo)
            first_listing += n


def _measure(folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    import numpy as np

    from vision.manifest import Manifest
    from vision.taxonomy import Taxonomy

    seconds: dict[str, float] = {}
    rss_gib: dict[str, float] = {}

    def done(step: str) -> None:
        nonlocal began
        seconds[step] = time.perf_counter() - began
        rss_gib[step] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        began = time.perf_counter()

    done("import")
    taxonomy = Taxonomy.load(folder / "taxonomy.json")
    manifest = Manifest.load(str(folder / "manifest.parquet"))
    done("load")
    digest = manifest.compute_digest()
    done("digest")
    train, val = manifest.select_split("train"), manifest.select_split("val")
    done("select_split")
    labels = train.resolve_labels(taxonomy), val.resolve_labels(taxonomy)
    done("labels")
    from training.recipe import Recipe, Stage
    from training.trainer.loading.sampler import ResumableBatchSampler

    done("import of the training package")
    recipe = Recipe(stages=(Stage(photo_px=224, epochs=1),), batch_size=1024)
    shares = []
    for rank in range(RANKS):
        draws = ResumableBatchSampler(train, labels[0], recipe, rank=rank, world_size=RANKS)
        shares.append(np.concatenate([draws.get_step_rows(step)[rank::RANKS] for step in range(draws.steps_per_epoch)]))
        del draws
    done("shares")
    times_drawn = np.bincount(np.concatenate(shares), minlength=len(train))
    assert times_drawn.min() == times_drawn.max() == 1, "the ranks' shares are not disjoint and complete"
    assert len(labels[0].category_nodes) == len(train)
    return {
        "seconds": seconds,
        "rss_gib": rss_gib,
        "rows": len(manifest),
        "train_rows": len(train),
        "val_rows": len(val),
        "listings": int(manifest.number_listings().max()) + 1,
        "digest": digest,
    }


if __name__ == "__main__":
    main()
