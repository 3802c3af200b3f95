"""Measure time and memory of a decision with 5,000 categories and 10,000 brands, on one core.

    python -m benchmarks.decision_cost

One listing at a time, as in the gateway, which also recognises each photo alone, and in bulk, as in backfill and
evaluation; three photos per listing. The calibration has all that a fitted one has, and freed memory is kept, as in a
gateway process. Beside it what the scope score adds to the model: its head on the feature maps of a lite2 backbone.
"""

import os
import statistics
import time
import tracemalloc
from typing import Any, cast

import numpy as np
import torch

from benchmarks.common import write_result
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee
from vision.decision import compute_prefilled, decide
from vision.model import ScopeHead, create_timm_backbone
from vision.prediction.listings import predict_listings
from vision.runtime.lifetime import keep_freed_memory
from vision.taxonomy import Brand, Category, Taxonomy

NUM_LISTINGS, NUM_PHOTOS = 1000, 3
BRANCHES = (10, 10, 50)
NUM_BRANDS = 10_000


def create_large_taxonomy() -> Taxonomy:
    categories: list[Category] = []
    level: list[str | None] = [None]
    for depth, num_branches in enumerate(BRANCHES):
        children = [(f"{parent or 'c'}-{i}", parent) for parent in level for i in range(num_branches)]
        categories += [Category(id=id_, names={"en": f"{depth} {id_}"}, parent_id=parent) for id_, parent in children]
        level = [id_ for id_, _ in children]
    brands = tuple(Brand(id=f"b{i}", names={"en": f"Brand {i}"}) for i in range(NUM_BRANDS))
    return Taxonomy(version="large", categories=tuple(categories), brands=brands)


def create_calibration() -> Calibration:
    fields = tuple(
        FieldGuarantee(
            name=name, alpha=0.05, delta=0.0125, threshold=0.5, num_listings=2000, num_filled=1000, num_errors=20
        )
        for name in (PATH_FIELD, BRAND_FIELD)
    )
    return Calibration(
        category_temperature=1.3,
        category_depth_temperatures=(0.9, 1.1, 1.2),
        brand_temperature=1.2,
        unknown_brand_below=0.0,
        scope_threshold=-1.0,
        agreement_limit=0.05,
        fields=fields,
        certifies={},
    )


def measure_scope_head() -> float:
    """Return the milliseconds of a listing: channel means, and the head that no category makes larger."""
    stage = cast(Any, create_timm_backbone("tf_efficientnet_lite2")).feature_info[-2]
    num_channels, side = stage["num_chs"], 240 // stage["reduction"]
    maps = torch.rand(NUM_PHOTOS, num_channels, side, side)
    head = ScopeHead(torch.zeros(num_channels), torch.eye(num_channels))
    took_ms = []
    with torch.inference_mode():
        for _ in range(NUM_LISTINGS):
            begun_s = time.perf_counter()
            head(maps.mean(dim=(2, 3)))
            took_ms.append((time.perf_counter() - begun_s) * 1000)
    return statistics.median(took_ms)


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    taxonomy, calibration = create_large_taxonomy(), create_calibration()
    rng = np.random.default_rng(0)
    category_logits = rng.normal(0, 3, (NUM_LISTINGS * NUM_PHOTOS, len(taxonomy.leaf_ids))).astype(np.float32)
    brand_logits = rng.normal(0, 3, (NUM_LISTINGS * NUM_PHOTOS, len(taxonomy.brand_labels))).astype(np.float32)
    scope_scores = np.zeros(NUM_LISTINGS * NUM_PHOTOS, np.float32)
    groups = np.repeat(np.arange(NUM_LISTINGS), NUM_PHOTOS)

    def decide_one(listing: int) -> float:
        photos = slice(listing * NUM_PHOTOS, (listing + 1) * NUM_PHOTOS)
        begun_s = time.perf_counter()
        decide(
            category_logits[photos],
            brand_logits[photos],
            scope_scores[photos],
            taxonomy=taxonomy,
            calibration=calibration,
        )
        return (time.perf_counter() - begun_s) * 1000

    def decide_batch() -> float:
        begun_s = time.perf_counter()
        answers = predict_listings(
            category_logits, brand_logits, scope_scores, groups, taxonomy=taxonomy, calibration=calibration
        )
        compute_prefilled(answers, taxonomy=taxonomy, calibration=calibration)
        return (time.perf_counter() - begun_s) * 1000 / NUM_LISTINGS

    begun_s = time.perf_counter()
    decide_one(0)
    decide_batch()
    first_s = time.perf_counter() - begun_s
    alone_ms = [decide_one(listing) for listing in range(NUM_LISTINGS)]
    together_ms = [decide_batch() for _ in range(3)]
    tracemalloc.start()
    decide_batch()
    peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    os.sched_setaffinity(0, cores)
    write_result(
        "decision_cost",
        {
            "ms_per_listing": statistics.median(alone_ms),
            "ms_per_listing_p99": float(np.quantile(alone_ms, 0.99)),
            "ms_per_listing_in_bulk": statistics.median(together_ms),
            "peak_mib_in_bulk": peak_mib,
            "scope_head_ms_per_listing": measure_scope_head(),
        },
        {
            "setting": f"{NUM_LISTINGS} listings of {NUM_PHOTOS} photos, {len(taxonomy.leaf_ids)} leaves at depth "
            f"{len(BRANCHES)}, {NUM_BRANDS} brands, one core",
            "first_call_s": first_s,
            "in_bulk_ms": together_ms,
        },
    )


if __name__ == "__main__":
    main()
